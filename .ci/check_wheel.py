"""Refuse a wheel that is too large, carries sources or tests, or has symbols left in it."""

import sys
import zipfile
from pathlib import Path

LIMIT = 2_400_000
UNWANTED = (".c", ".cpp", ".h", ".pyx", ".pxd")

path = Path(sys.argv[1])
size = path.stat().st_size
print(f"{path.name}: {size / 1e6:.2f} MB")
assert size <= LIMIT, f"the wheel has {size} bytes; expected at most {LIMIT}"
with zipfile.ZipFile(path) as wheel:
    for name in wheel.namelist():
        assert not name.endswith(UNWANTED), f"the wheel carries a source: {name}"
        assert "tests" not in name.split("/"), f"the wheel carries a test: {name}"
        if name.endswith(".so"):
            code = wheel.read(name)
            assert b".symtab" not in code, f"{name} has its symbols"
            assert b".debug_info" not in code, f"{name} has debugging information"
    kernels = [name for name in wheel.namelist() if name.endswith((".so", ".pyd"))]
    assert "fastconv/py.typed" in wheel.namelist(), "py.typed is missing"
print(f"{len(kernels)} compiled modules, no sources, no symbols")
