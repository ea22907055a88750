"""Writes a page's files: JSON, one HTML file, and PNG files where matplotlib is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.html_page import write_html
from benchmarks.pages import Page
from benchmarks.program import output_folder, write_output


def write_page(
    args: argparse.Namespace, console: Console, page: Page, content: dict[str, Any]
) -> None:
    """Write JSON, the HTML page and plots; say where.

    Args:
        args: with the flags of `add_output_flags`.
        console: where it is said.
        page: what is shown.
        content: what was measured, for the JSON file.
    """

    def draw(stem: Path) -> list[Path]:
        from benchmarks.chart_plots import write_charts

        return write_charts(page.charts, stem)

    write_output(args, console, {**content, "notes": page.notes}, draw if page.charts else None)
    path = write_html(page, output_folder(args) / f"{args.name}.html")
    console.print(f"written: {path}", soft_wrap=True, highlight=False)
