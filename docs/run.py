"""Run the Python of the pages as a reader would: every block in order, one namespace a page.

    python docs/run.py [PAGE ...]

A block that prints is followed by an ``output`` block, which must be what it prints ("..." stands for anything). The
pictures that a page saves are left in docs/_build/pictures, with the drawings. sphinx-build begins with this (conf.py).
"""

import contextlib
import doctest
import io
import re
import sys
import time
from pathlib import Path

import drawings

HERE = Path(__file__).resolve().parent
PICTURES = HERE / "_build" / "pictures"
BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n+^```output\n(.*?)^```$)?", re.DOTALL | re.MULTILINE)


def pages() -> list[Path]:
    """All pages that show Python."""
    found = (p for p in sorted(HERE.rglob("*.md")) if "_build" not in p.parts)
    return [p for p in found if BLOCK.search(p.read_text(encoding="utf-8"))]


def run(page: Path) -> int:
    """Run a page's blocks; how many they are."""
    text, scope = page.read_text(encoding="utf-8"), {"__name__": "__main__"}
    blocks = list(BLOCK.finditer(text))
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        code = compile("\n" * line + block[1], str(page), "exec")  # a traceback then shows the page's own lines
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, scope)
        shown, got = block[2] or "", printed.getvalue()
        if not doctest.OutputChecker().check_output(shown, got, doctest.ELLIPSIS):
            raise AssertionError(f"{page.name}, line {line + 1}: the page shows\n{shown}\nbut the block prints\n{got}")
    return len(blocks)


def main(names: list[str]) -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    drawings.draw(PICTURES)
    chosen = [Path(name).resolve() for name in names] or pages()
    with contextlib.chdir(PICTURES):
        for page in chosen:
            began = time.perf_counter()
            n = run(page)
            print(f"{page.relative_to(HERE)}: {n} blocks of Python ran, {time.perf_counter() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
