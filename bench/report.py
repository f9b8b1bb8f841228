"""Write the README's tables of fastconv beside NumPy from what pytest-benchmark measured.

    python -m pytest bench --benchmark-json=out.json && python bench/report.py out.json

Each cell is fastconv's shortest time and how many times faster that is than the baseline's; the geometric mean of all
cells of a table is printed and stands under it. `write_section` serves the other scripts here too.
"""

import argparse
import json
import math
import os
import platform
from collections.abc import Iterable
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"
PREFIXES = {"FLOP": (1e9, "GFLOP/s"), "B": (1e9, "GB/s")}

Cells = dict[tuple[str, str], dict[str, dict[str, Any]]]  # (row, column) -> library -> measurement


def geometric_mean(values: Iterable[float]) -> float:
    logs = [math.log(value) for value in values]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan


def duration(seconds: float) -> str:
    """Three digits, in the unit that suits.

    >>> duration(0.0123), duration(3.2e-6), duration(2)
    ('12.3 ms', '3.20 us', '2.00 s')
    """
    for size, unit in ((1, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= size or unit == "us":
            break
    value = seconds / size
    return f"{value:.{max(0, 2 - int(math.log10(max(value, 1))))}f} {unit}"


def machine() -> str:
    """The processor's name, on Linux its family and model, for virtual machines hide the rest, and its number of cores."""
    name, file = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if file.exists():
        told = dict(map(str.strip, line.split(":", 1)) for line in file.read_text().splitlines() if ":" in line)
        name = told.get("model name", name)
        if "cpu family" in told:
            name += f" (family {told['cpu family']}, model {told.get('model', '?')})"
    return f"{name}, {os.cpu_count()} cores"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A Markdown table; all columns but the first are aligned right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_section(file: Path, name: str, text: str) -> None:
    """Replace what stands between ``<!-- name -->`` and ``<!-- end of name -->``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = file.read_text(encoding="utf-8")
    if whole.count(begin) != 1 or whole.count(end) != 1:
        raise SystemExit(f"{file} needs one line {begin} and one line {end}")
    before, after = whole.split(begin)[0], whole.split(end)[1]
    file.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}", encoding="utf-8")


def read(path: str) -> tuple[dict[str, Cells], dict[str, Any]]:
    """The measurements of each table, and the settings of the run."""
    data = json.loads(Path(path).read_text(encoding="utf-8"))
    tables: dict[str, Cells] = {}
    for one in data["benchmarks"]:
        info = one["extra_info"]
        cell = tables.setdefault(info["table"], {}).setdefault((info["row"], info["column"]), {})
        cell[info["library"]] = {"seconds": one["stats"]["min"], "rate": info["rate"]}
    settings = data["benchmarks"][0]["extra_info"] if data["benchmarks"] else {}
    return tables, settings


def shown(measured: dict[str, dict[str, Any]]) -> str:
    ours, theirs = measured["fastconv"], measured["NumPy"]
    speed = ""
    if ours["rate"]:
        amount, unit = ours["rate"]
        size, name = PREFIXES[unit]
        speed = f", {amount / ours['seconds'] / size:.0f} {name}"
    return f"{duration(ours['seconds'])}{speed}, **{theirs['seconds'] / ours['seconds']:.1f}x**"


def section(title: str, cells: Cells) -> str:
    """One table and its geometric mean."""
    cells = {place: c for place, c in cells.items() if {"fastconv", "NumPy"} <= c.keys()}
    rows, columns = (list(dict.fromkeys(place[i] for place in cells)) for i in (0, 1))
    if len(columns) > len(rows):  # a page is higher than it is wide
        return section(title, {(column, row): c for (row, column), c in cells.items()})
    columns = max(([c for r, c in cells if r == row] for row in rows), key=len)  # in the order of a row that has all
    body = [[row, *(shown(cells[row, c]) if (row, c) in cells else "" for c in columns)] for row in rows]
    ratios = {place: c["NumPy"]["seconds"] / c["fastconv"]["seconds"] for place, c in cells.items()}
    means = [geometric_mean(r for (_, column), r in ratios.items() if column == name) for name in columns]
    body.append(["geometric mean", *(f"**{mean:.1f}x**" for mean in means)])
    mean, least = geometric_mean(ratios.values()), min(ratios.values(), default=math.nan)
    overall = f"{title}: {mean:.1f} times as fast as NumPy in the geometric mean, at the least {least:.1f} times."
    return f"{overall}\n\n{table([title, *columns], body)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("json", help="what pytest wrote with --benchmark-json")
    parser.add_argument("--readme", type=Path, default=README)
    parser.add_argument("--print", action="store_true", help="print the tables and leave the README as it is")
    args = parser.parse_args()
    tables, settings = read(args.json)
    made = [section(title, cells) for title, cells in tables.items()]
    for text in made:
        print(text if args.print else text.splitlines()[0])
    if not args.print:
        where = f"{machine()}; {settings['threads']} threads, {settings['isa']}, float32."
        write_section(args.readme, "numpy", "\n\n".join([where, *made]))


if __name__ == "__main__":
    main()
