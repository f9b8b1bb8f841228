"""Use an installed fastconv as a stranger would: documented examples, the time to import, and the code of a README.

    use.py            fastconv and NumPy alone
    use.py README.md  with the extras demo and images: the Python blocks, on a folder of photos that is made here
"""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

import fastconv


def examples() -> None:
    for name in ("geometry", "ops", "layers", "losses"):
        result = doctest.testmod(importlib.import_module(f"fastconv.{name}"))
        assert result.attempted, f"fastconv.{name} has no examples"
        assert not result.failed, f"{result.failed} examples of fastconv.{name} fail"
        print(f"fastconv.{name}: {result.attempted} lines of examples ran")


def import_time() -> None:
    clock = "import time; a = time.perf_counter(); import numpy; b = time.perf_counter(); import fastconv; "
    command = [sys.executable, "-c", clock + "print(b - a, time.perf_counter() - b)"]
    times = [tuple(map(float, subprocess.check_output(command, text=True).split())) for _ in range(7)]
    numpy, more = (min(t[i] for t in times) * 1e3 for i in (0, 1))
    print(f"import numpy: {numpy:.0f} ms; import fastconv: {more:.0f} ms more (the bar is 60)")


def photos() -> None:
    """Two classes of pictures, light above dark and dark above light."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for k, name in enumerate(("cat", "dog")):
        Path("photos", name).mkdir(parents=True)
        for i in range(40):
            picture = rng.integers(0, 128, (40, 48, 3), dtype=np.uint8)
            picture[20 * k : 20 * k + 20] += 127
            Image.fromarray(picture).save(Path("photos", name, f"{i}.png"))


def readme(path: Path) -> None:
    photos()
    blocks = re.findall(r"^```python\n(.*?)^```$", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks, f"{path} shows no Python"
    for block in blocks:
        scope: dict = {}
        exec(compile(block, path.name, "exec"), scope)
        print(f"{path.name}: {len(block.splitlines())} lines of Python ran")
    accuracy = scope["trainer"].evaluate(scope["photos"].x_test, scope["photos"].y_test)["accuracy"]
    assert accuracy > 0.9, f"the README's ConvNet learned nothing: accuracy {accuracy}"


if __name__ == "__main__":
    assert "site-packages" in str(fastconv.__file__), f"this is the tree's fastconv: {fastconv.__file__}"
    if len(sys.argv) > 1:
        readme(Path(sys.argv[1]))
    else:
        examples()
        import_time()
