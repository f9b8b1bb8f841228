"""Threads, instruction sets and what was built: the settings that every call reads."""

import contextlib
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import numpy as np

from fastconv import _kernels, checks
from fastconv._kernels import cpu, memory

_requested: int | None = None
_forked = False
_precision = "fast"


def _quota(path: Path = Path("/sys/fs/cgroup/cpu.max")) -> int | None:
    """Cores that the control group grants, rounded up; None if it sets no limit."""
    try:
        quota, period = path.read_text().split()[:2]
        return max(1, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        return None


def _cores() -> int:
    """Cores that this process may use, by affinity and by quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(allowed, _quota() or allowed)


def cache_bytes(level: int, otherwise: int, folder: Path = Path("/sys/devices/system/cpu/cpu0/cache")) -> int:
    """Of a processor's cache of this level, as far as the system tells."""
    for cache in sorted(folder.glob("index*")):
        try:
            size = (cache / "size").read_text().strip()
            if int((cache / "level").read_text()) == level and (cache / "type").read_text().strip() != "Instruction":
                return int(size[:-1]) << {"K": 10, "M": 20, "G": 30}[size[-1]]
        except (OSError, ValueError, LookupError):
            pass
    return otherwise


def _threads_from_environment() -> int | None:
    text = os.environ.get("FASTCONV_NUM_THREADS")
    if not text:
        return None
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"FASTCONV_NUM_THREADS is a count of threads; expected an integer of at least 1, got {text!r}")
    return int(text)


_environment = _threads_from_environment()
# Those that methods are chosen by; common sizes where the system does not tell.
FIRST_CACHE, SECOND_CACHE, LAST_CACHE = cache_bytes(1, 1 << 15), cache_bytes(2, 1 << 20), cache_bytes(3, 1 << 25)
_core_limit = None if os.environ.get("OMP_NUM_THREADS") else _cores()


def _after_fork() -> None:
    """The OpenMP runtime's other threads do not exist in a forked child and it would wait for them for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def set_num_threads(n: int) -> None:
    """Use `n` threads from now on, in the whole process.

    Parameters
    ----------
    n : int
        At least 1. Without this call: FASTCONV_NUM_THREADS, else OMP_NUM_THREADS, else the cores this process may use.

    Notes
    -----
    The results are the same bits for any number of threads. A forked child of this process always uses one.

    Examples
    --------
    >>> import fastconv as fc
    >>> with fc.num_threads(1):
    ...     fc.get_num_threads()
    1
    """
    global _requested
    _requested = checks.count("set_num_threads", "n", n, 1, 1 << 16)


def get_num_threads() -> int:
    """Threads that the next call would use."""
    if _forked:
        return 1
    if _requested is not None:
        return _requested
    if _environment is not None:
        return _environment
    n = cpu.openmp_threads()
    return n if _core_limit is None or n < _core_limit else _core_limit


@contextlib.contextmanager
def num_threads(n: int) -> Iterator[None]:
    """``with num_threads(n):`` uses `n` threads inside the block."""
    global _requested
    before = _requested
    set_num_threads(n)
    try:
        yield
    finally:
        _requested = before


def isa() -> str:
    """The level of instructions in use: "baseline", "avx2", "avx512" or "neon"."""
    return _kernels.level()


def available_isas() -> tuple[str, ...]:
    """The levels that were built and that this processor runs, in rising order."""
    return _kernels.available


def use_isa(name: str) -> None:
    """Use the kernels of this level from now on; FASTCONV_ISA in the environment does it at import.

    Raises
    ------
    ValueError
        If the level was not built or the processor does not run it.
    """
    _kernels.use(checks.choice("use_isa", "name", name, _kernels.available))


def set_precision(name: str) -> None:
    """ "fast" (the default) lets method="auto" choose Winograd, "exact" keeps it to methods exact to rounding."""
    global _precision
    _precision = checks.choice("set_precision", "name", name, ("fast", "exact"))


def get_precision() -> str:
    """The precision in force: "fast" or "exact"."""
    return _precision


def set_cache_limit(megabytes: int) -> None:
    """Keep at most so many megabytes (of 2^20 bytes) of freed results for the next ones; 1024 unless set.

    Fresh memory has to be handed out and zeroed by the system page by page, which costs as much as computing many a layer.
    """
    memory.set_cache_limit(checks.count("set_cache_limit", "megabytes", megabytes, 0, 1 << 40) << 20)


def show_config(file: TextIO | None = None) -> None:
    """Print what was built, what runs here and the settings in force."""
    from fastconv import __version__

    rows = {
        "fastconv": __version__,
        "python": f"{platform.python_version()} ({platform.system()}, {platform.machine()})",
        "numpy": np.__version__,
        "isa": f"{isa()} (available: {', '.join(available_isas())})",
        "threads": f"{get_num_threads()} of {os.cpu_count()} processors",
        "openmp": "yes" if cpu.has_openmp() else "no: one thread only",
        "precision": get_precision(),
        "caches": f"{SECOND_CACHE >> 10} kB of a core, {LAST_CACHE >> 10} kB the last",
    }
    for name, value in rows.items():
        print(f"{name:10s} {value}", file=file or sys.stdout)
