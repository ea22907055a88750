"""Pages are whole, readable without anything else, and carry no text that was not escaped."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.html_page import html_page
from benchmarks.pages import Chart, Grid, Mark, Page
from benchmarks.svg_chart import svg_chart

EVIL = "<script>alert('1')</script> & \"q\""
VOID = {"meta", "br"}


class Reader(HTMLParser):
    """Collects tags, texts and table rows, and checks that every tag is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1][-1] += data


def evil_page() -> Page:
    marks = [Mark(1.0, 2.0, 1.0, 3.0), Mark(8.0, 4.0, 4.0, 4.0)]
    return Page(
        title=EVIL,
        facts={EVIL: EVIL},
        grids=[Grid(EVIL, ("", EVIL), [(EVIL, EVIL), ("b", "2")])],
        charts=[Chart("c", EVIL, EVIL, EVIL, {EVIL: marks})],
        notes=[EVIL],
    )


def test_a_page_is_one_file_without_scripts_or_links_and_every_text_is_escaped() -> None:
    html = html_page(evil_page(), {"argv": [EVIL]})
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    assert "script" not in reader.tags
    assert reader.links == []
    # Title, heading, fact twice, note, table's title, head and two cells, four texts of the chart.
    assert reader.text.count(EVIL) == 13
    assert [EVIL, EVIL] in reader.cells
    assert ["b", "2"] in reader.cells
    assert "&quot;argv&quot;" in html


def test_charts_are_xml_with_a_mark_for_each_value() -> None:
    root = ElementTree.fromstring(svg_chart(evil_page().charts[0]))
    kind = "{http://www.w3.org/2000/svg}"
    circles = list(root.iter(f"{kind}circle"))
    assert len(circles) == 2
    first, second = (float(circle.attrib["cx"]) for circle in circles)
    assert first < second
    # SVG counts downwards.
    assert float(circles[0].attrib["cy"]) > float(circles[1].attrib["cy"])
    assert [title.text for title in root.iter(f"{kind}title")][0] == "1: 2 (1 to 3)"


@pytest.mark.parametrize("marks", [[], [Mark(5.0, 0.0, 0.0, 0.0)], [Mark(0.0, 7.3, 7.0, 8.0)]])
def test_charts_of_little_are_drawn(marks: list[Mark]) -> None:
    assert ElementTree.fromstring(svg_chart(Chart("c", "t", "x", "y", {"l": marks}))) is not None


def test_png_files_are_written_where_matplotlib_is(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benchmarks.chart_plots import write_charts

    chart = Chart("c", "title", "x", "y", {"l": [Mark(1, 2, 1, 3), Mark(16, 3, 3, 3)]})
    (path,) = write_charts([chart], tmp_path / "stem")
    assert path.name == "stem_c.png"
    assert path.read_bytes().startswith(b"\x89PNG")
