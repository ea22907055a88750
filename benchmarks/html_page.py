"""Writes a page as one HTML file that needs no other: styles and charts are in it, no scripts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path

from benchmarks.pages import Grid, Page
from benchmarks.report import provenance
from benchmarks.svg_chart import svg_chart

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 72em; padding: 0 1em;
  color: #222; background: #fff; }
table { border-collapse: collapse; margin: 0 0 1.5em; }
.wide { overflow-x: auto; }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em; text-align: right;
  font-variant-numeric: tabular-nums; white-space: pre-line; vertical-align: top; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
tbody tr:hover { background: #f4f6fa; }
.facts td { text-align: left; }
svg { max-width: 34em; width: 100%; }
pre { background: #f6f6f6; padding: 1em; overflow-x: auto; }
"""


def write_html(page: Page, path: Path) -> Path:
    """Write a page, where and how it was measured included."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(html_page(page, provenance()), encoding="utf-8")
    return path


def html_page(page: Page, origin: Mapping[str, object]) -> str:
    """Give a page as HTML; every text is escaped.

    Args:
        page: what is shown.
        origin: its provenance.
    """
    title = escape(page.title)
    facts = Grid("", ("measured", ""), list(page.facts.items()))
    parts = [
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>",
        f"<h1>{title}</h1>",
        _table(facts, kind="facts"),
        *(_notes(page.notes) if page.notes else ()),
        *(f"<h2>{escape(grid.title)}</h2>\n{_table(grid)}" for grid in page.grids),
        *(f"<figure>{svg_chart(chart)}</figure>" for chart in page.charts),
        "<h2>Where and how</h2>",
        f"<pre>{escape(json.dumps(origin, indent=2))}</pre>",
        "</body>\n</html>\n",
    ]
    return "\n".join(parts)


def _notes(notes: list[str]) -> list[str]:
    return ["<h2>Notes</h2>", "<ul>", *(f"<li>{escape(note)}</li>" for note in notes), "</ul>"]


def _table(grid: Grid, kind: str = "numbers") -> str:
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in grid.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in grid.rows
    )
    return (
        f'<div class="wide"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{rows}\n</tbody></table></div>"
    )
