"""Optional packages: imported when they are used, with an error that names the extra that brings them."""

from __future__ import annotations

import importlib
from types import ModuleType

from .checks import message


def need(where: str, module: str, extra: str) -> ModuleType:
    """Import `module`, which the extra `extra` of fastconv brings, for the function `where`.

    Raises
    ------
    ImportError
        When it is not installed; the message has the command that installs it.

    Examples
    --------
    >>> need("load", "no_such_module", "demo")
    Traceback (most recent call last):
    ImportError: load: the package no_such_module is not installed; expected pip install "fastconv[demo]"
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as problem:
        if problem.name is None or problem.name.partition(".")[0] != module.partition(".")[0]:
            raise  # the package is there, something of its own is missing
        name = {"PIL": "Pillow"}.get(module.partition(".")[0], module.partition(".")[0])
        what = f"the package {name} is not installed"
        raise ImportError(message(where, what, f'pip install "fastconv[{extra}]"')) from None
