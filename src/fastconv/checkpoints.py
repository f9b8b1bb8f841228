"""Checkpoints: a tree of arrays and plain values in one safetensors file, written so that a crash never costs the last.

The arrays are the file's tensors, named by their place in the tree ("model/0.w"); all else stands as JSON in its
header, with a checksum. A file is written beside its name, brought to the disk, and put in place by one rename: at
every moment there is a whole file under the name, the old one or the new one.
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from .checks import message, value_error
from .extras import need

FORMAT = 1


def save(path: str | Path, tree: dict[str, Any], kind: str) -> None:
    """Write `tree` to `path`, atomically.

    Parameters
    ----------
    path : str or Path
        The folder must exist.
    tree : dict
        Dictionaries (keys are str) and lists of arrays, numbers, str, bool and None.
    kind : str
        What this is, such as "checkpoint"; `load` asks for the same.

    Raises
    ------
    OSError
        When it cannot be written (the disk is full, say). What stood at `path` before still does.
    ImportError
        When safetensors is not installed (extra ``demo``).
    """
    path, tensors = Path(path), dict[str, np.ndarray]()
    described = _pack(tree, "", tensors)
    header = {"format": FORMAT, "kind": kind, "crc32": _checksum(tensors), "tree": described}
    temporary = path.with_name(f".{path.name}.tmp")  # one name, so that the rest of a killed run is overwritten
    library = need("save", "safetensors.numpy", "demo")
    try:
        with open(temporary, "wb") as file:
            file.write(library.save(tensors, {"fastconv": json.dumps(header)}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as problem:
        with contextlib.suppress(OSError):
            temporary.unlink()
        rest = "; the file that was there is untouched" if path.exists() else ""
        raise OSError(message("save", f"{path} could not be written ({problem}){rest}")) from problem


def load(path: str | Path, kind: str) -> dict[str, Any]:
    """Read what `save` wrote.

    Parameters
    ----------
    path : str or Path
        The file.
    kind : str
        What it must be.

    Returns
    -------
    dict
        The tree; tuples have become lists, NumPy's scalars plain numbers.

    Raises
    ------
    FileNotFoundError
        When there is no such file.
    ValueError
        When it is torn, was changed, comes from elsewhere, or is of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(message("load", f"there is no {kind} at {path}"))
    library = need("load", "safetensors", "demo")
    try:
        with library.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (library.SafetensorError, OSError, ValueError) as problem:
        raise value_error("load", f"{path} is torn or no {kind} ({problem})", "a whole safetensors file") from problem
    if "fastconv" not in metadata:
        raise value_error("load", f"{path} is a safetensors file from elsewhere", f"a {kind} that fastconv wrote")
    header = json.loads(metadata["fastconv"])
    if header.get("format") != FORMAT or header.get("kind") != kind:
        got = f"a {header.get('kind')} of format {header.get('format')}"
        raise value_error("load", f"{path} is something else", f"a {kind} of format {FORMAT}", got)
    if _checksum(tensors) != header["crc32"]:
        raise value_error("load", f"{path} is damaged: its checksum does not hold", f"a whole {kind}")
    return _unpack(header["tree"], tensors)


def _pack(node: Any, name: str, tensors: dict[str, np.ndarray]) -> Any:
    """The tree as JSON, with every array moved to `tensors` and its name left in its place."""
    if isinstance(node, np.ndarray):
        tensors[name] = np.asarray(node, order="C")
        return {"$array": name}
    if isinstance(node, dict):
        return {key: _pack(value, f"{name}/{key}".lstrip("/"), tensors) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        return [_pack(value, f"{name}/{i}", tensors) for i, value in enumerate(node)]
    return node.item() if isinstance(node, np.generic) else node


def _unpack(node: Any, tensors: dict[str, np.ndarray]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {"$array"}:
            return tensors[node["$array"]]
        return {key: _unpack(value, tensors) for key, value in node.items()}
    return [_unpack(value, tensors) for value in node] if isinstance(node, list) else node


def _checksum(tensors: dict[str, np.ndarray]) -> int:
    crc = 0
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].reshape(-1).view(np.uint8).data, zlib.crc32(name.encode(), crc))
    return crc


def _sync_folder(folder: Path) -> None:
    """Bring the rename itself to the disk; Windows has no such call and needs none."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
