"""One HTML file that shows a run: tables and pictures inside it, nothing to fetch, opened by any browser."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --faint: #66707d; --line: #dde2e8;
  --paper: #ffffff; --card: #f6f8fa; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6eaf0; --faint: #98a3b0; --line: #2c3541; --paper: #12171d; --card: #1a212a; }
}
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .5rem; }
p { margin: .4rem 0; color: var(--faint); }
.big { font-size: 2.6rem; font-weight: 650; color: var(--ink); margin: .75rem 0 1rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr)); gap: .6rem; margin: 0; }
.facts div { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .55rem .8rem; }
.facts dt { font-size: .78rem; color: var(--faint); } .facts dd { margin: 0; overflow-wrap: anywhere; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .5rem; padding: .9rem; overflow-x: auto;
      font: 13px/1.45 ui-monospace, monospace; }
img { max-width: 100%; background: #fff; border: 1px solid var(--line); border-radius: .5rem; padding: .6rem;
      box-sizing: border-box; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid var(--line); }
.scroll { overflow-x: auto; }
"""


def write(
    path: str | Path, title: str, headline: str, facts: Mapping[str, object], texts: Mapping[str, str],
    pictures: Sequence[tuple[str, str, Path]], rows: Sequence[Mapping[str, float]],
) -> None:
    """Write the report.

    Parameters
    ----------
    path : str or Path
        Where to.
    title, headline : str
        What the run was, and its result.
    facts : mapping
        Settings and figures, shown as cards.
    texts : mapping of str to str
        Tables as they would be printed, under their headings.
    pictures : sequence of (heading, text, path)
        PNG files; they are copied into the report.
    rows : sequence of mappings
        The history, one row for each epoch.
    """
    cards = "".join(f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>" for k, v in facts.items())
    body = [
        f"<h1>{escape(title)}</h1>", f'<p class="big">{escape(headline)}</p>', f'<dl class="facts">{cards}</dl>',
        *(f"<h2>{escape(heading)}</h2>\n<pre>{escape(text)}</pre>" for heading, text in texts.items()),
        *(_section(*picture) for picture in pictures),
        "<h2>Epoch by epoch</h2>", _table(rows),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    html = f'<!DOCTYPE html>\n<html lang="en">\n<head>{head}<style>{STYLE}</style></head>\n<body>\n'
    Path(path).write_text(html + "\n".join(body) + "\n</body>\n</html>\n", encoding="utf-8")


def _section(heading: str, text: str, picture: Path) -> str:
    data = base64.b64encode(picture.read_bytes()).decode("ascii")
    image = f'<img alt="{escape(heading)}" src="data:image/png;base64,{data}">'
    return f"<h2>{escape(heading)}</h2>\n<p>{escape(text)}</p>\n{image}"


def _table(rows: Sequence[Mapping[str, float]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    head = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in columns)
    lines = ["".join(f"<td>{_cell(name, row.get(name))}</td>" for name in columns) for row in rows]
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table></div>'


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.endswith("accuracy"):
        return f"{value:.2%}"
    return f"{value:.0f}" if name in ("epoch", "steps") else f"{value:.4g}"
