"""Pages: self-contained, escaped, and the same in Markdown."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from planet_dist.page import Grid, Picture, Section, to_html, to_markdown, write_page
from shards.errors import RunError

HOSTILE = '<script>alert(1)</script> | `x` "y"'


class Tags(HTMLParser):
    """Counts start tags and keeps text."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def made(folder: Path) -> list[Section]:
    (folder / "figures").mkdir()
    (folder / "figures" / "a.png").write_bytes(b"made picture")
    grid = Grid(["model", HOSTILE], [["a", "1"], [HOSTILE, "2"]])
    return [Section(HOSTILE, [HOSTILE], [HOSTILE], grid, [Picture(folder / "figures" / "a.png", HOSTILE)])]


def test_html_holds_its_pictures_and_shows_hostile_text_as_text(tmp_path: Path) -> None:
    page = to_html(HOSTILE, made(tmp_path))
    parsed = Tags()
    parsed.feed(page)
    assert "script" not in parsed.tags
    assert parsed.text.count(HOSTILE) == 8  # two titles, heading, paragraph, item, two cells, caption
    assert re.findall(r"https?://|src=\"(?!data:)", page) == []
    assert base64.b64encode(b"made picture").decode() in page
    assert 'name="viewport"' in page


def test_markdown_tables_keep_their_columns_whatever_the_cells_hold(tmp_path: Path) -> None:
    lines = to_markdown("title", made(tmp_path), tmp_path).splitlines()
    table = [line for line in lines if line.startswith("| ")]
    assert len(table) == 4
    assert {len(re.split(r"(?<!\\)\|", line)) for line in table} == {4}
    assert any(line.endswith("(figures/a.png)") for line in lines)
    assert not any("<script>" in line for line in lines)


def test_a_missing_picture_is_an_error_and_leaves_no_page(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"gone\.png: cannot be read"):
        write_page(tmp_path, "title", [Section("a", pictures=[Picture(tmp_path / "gone.png", "gone")])])
    assert list(tmp_path.iterdir()) == []
