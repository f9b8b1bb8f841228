"""The compiled kernels, one set for each level of instructions; `kernel(name)` gives the module of the level in use.

Private: kernels trust their arguments. The level is chosen at import: FASTCONV_ISA if set, else the best that the processor runs.
"""

import glob
import importlib
import os
from types import ModuleType


def _load_openmp() -> ModuleType:
    """The module whose loading brings GNU's OpenMP runtime, which reads its settings at that moment.

    Its threads wait for one another by spinning, for milliseconds. Where somebody else's thread holds a core, the one that
    spins keeps its own from the one that is waited for: so they give their core back after a quarter of a millisecond, unless
    the user has said how they are to wait. It must be longer than a virtual machine takes to wake a thread: else two threads
    that have once fallen asleep send each other to sleep for ever, and a call of 50 microseconds takes 500.
    """
    given = [name for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT") if name in os.environ]
    if not given:
        os.environ["GOMP_SPINCOUNT"] = "10000"
    try:
        return importlib.import_module("fastconv._kernels.cpu")
    finally:
        if not given:
            del os.environ["GOMP_SPINCOUNT"]


cpu = _load_openmp()

# in rising order, with the number that `cpu.supports` knows them by
LEVELS = {"baseline": 0, "neon": 0, "avx2": 1, "avx512": 2}


def _available() -> tuple[str, ...]:
    here = os.path.dirname(__file__)  # an empty folder of a level would pass for a package
    built = [name for name in LEVELS if glob.glob(os.path.join(here, name, "conv.*"))]
    return tuple(name for name in built if cpu.supports(LEVELS[name]))


def _find(level: str, module: str) -> ModuleType:
    return importlib.import_module(f"{__name__}.{level}.{module}")


available = _available()
_level = ""
_loaded: dict[str, ModuleType] = {}


def use(level: str) -> None:
    """Take the kernels of this level from now on."""
    global _level, _loaded
    if level not in available:
        raise ValueError(f"use_isa: {level!r} does not run here; expected one of {', '.join(available)}")
    if level != _level:
        _level, _loaded = level, {}


def level() -> str:
    return _level


def kernel(name: str) -> ModuleType:
    """The compiled module `name` of the level in use, loaded when first asked for."""
    module = _loaded.get(name)
    if module is None:
        module = _loaded[name] = _find(_level, name)
    return module


use(os.environ.get("FASTCONV_ISA") or available[-1])
