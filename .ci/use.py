"""Use an installed fastconv as a stranger would: the README's code, documented examples, and the time to import."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import fastconv

assert "site-packages" in fastconv.__file__, f"this is the tree's fastconv: {fastconv.__file__}"

readme = Path(sys.argv[1]).read_text(encoding="utf-8")
for block in re.findall(r"^```python\n(.*?)^```$", readme, re.DOTALL | re.MULTILINE):
    exec(compile(block, "README.md", "exec"), {})
    print(f"README: {len(block.splitlines())} lines of Python ran")

for name in ("geometry", "ops", "layers", "losses"):
    result = doctest.testmod(importlib.import_module(f"fastconv.{name}"))
    assert result.attempted, f"fastconv.{name} has no examples"
    assert not result.failed, f"{result.failed} examples of fastconv.{name} fail"
    print(f"fastconv.{name}: {result.attempted} lines of examples ran")

CLOCK = "import time; t = time.perf_counter(); import numpy; n = time.perf_counter(); import fastconv; "
times = []
for _ in range(7):
    code = CLOCK + "f = time.perf_counter(); print(n - t, f - n)"
    times.append(tuple(map(float, subprocess.check_output([sys.executable, "-c", code], text=True).split())))
numpy, more = (min(t[i] for t in times) * 1e3 for i in (0, 1))
print(f"import numpy {numpy:.0f} ms, import fastconv {more:.0f} ms more (at most 60)")
