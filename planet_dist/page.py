"""A page of tables and pictures, as one HTML file with all in it, and as Markdown beside its pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from planet_dist.page_style import CSS, POLICY, SCRIPT
from shards.errors import RunError
from shards.schema import write_whole


@dataclass(frozen=True)
class Grid:
    """A table: headings (none are shown where all are empty), and rows of as many cells.

    Attributes:
        sortable: by pressing a heading, where scripts run.
        chosen: the place of the row that stands out.
        bars: columns of numbers from 0 to 1, drawn as bars behind them.
        prose: columns of words rather than numbers.
    """

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    sortable: bool = False
    chosen: int | None = None
    bars: Sequence[int] = ()
    prose: Sequence[int] = ()


@dataclass(frozen=True)
class Picture:
    """A PNG file with what it shows in words."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page: paragraphs, then a list, a table and pictures where there are any."""

    title: str
    paragraphs: Sequence[str] = ()
    items: Sequence[str] = ()
    grid: Grid | None = None
    pictures: Sequence[Picture] = field(default=())


def to_html(title: str, sections: Sequence[Section]) -> str:
    """One file without scripts that needs nothing else; all text is escaped.

    Raises:
        RunError: a picture cannot be read.
    """
    body = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        body.append(f"<h2>{html.escape(section.title)}</h2>")
        body += [f"<p>{html.escape(text)}</p>" for text in section.paragraphs]
        if section.items:
            body += ["<ul>", *(f"<li>{html.escape(item)}</li>" for item in section.items), "</ul>"]
        if section.grid is not None:
            body.append(table(section.grid))
        body += [_html_picture(picture) for picture in section.pictures]
    return document(title, "\n".join(body))


def document(title: str, body: str) -> str:
    """A whole page that needs nothing else, and that may fetch and run nothing else.

    Args:
        title: text.
        body: HTML. The script, which makes tables sortable, comes along where there is one to sort.
    """
    head = (
        f'<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><link rel="icon" href="data:,"><title>{html.escape(title)}</title><style>{CSS}</style>'
    )
    script = f"<script>{SCRIPT}</script>\n" if 'class="sortable"' in body else ""
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{script}</body></html>\n'


def table(grid: Grid) -> str:
    """A table as HTML that scrolls by itself where the page is too narrow for it."""
    head = "".join(_heading(grid, column, cell) for column, cell in enumerate(grid.headings))
    head = f"<thead><tr>{head}</tr></thead>" if any(grid.headings) else ""
    rows = []
    for number, row in enumerate(grid.rows):
        cells = "".join(_cell(grid, column, cell) for column, cell in enumerate(row))
        rows.append(f"<tr class=chosen>{cells}</tr>" if number == grid.chosen else f"<tr>{cells}</tr>")
    kind = ' class="sortable"' if grid.sortable else ""
    # focusable, so that those without a mouse can scroll it too
    return f'<div class="wide" tabindex="0"><table{kind}>{head}<tbody>{"".join(rows)}</tbody></table></div>'


def _heading(grid: Grid, column: int, cell: str) -> str:
    kind = ' class="text"' if column in grid.prose else ""
    return f'<th scope="col"{kind}>{html.escape(cell)}</th>'


def _cell(grid: Grid, column: int, cell: str) -> str:
    if column in grid.bars and _is_share(cell):
        return f'<td class="bar" style="--share:{float(cell)}">{html.escape(cell)}</td>'
    return f'<td class="text">{html.escape(cell)}</td>' if column in grid.prose else f"<td>{html.escape(cell)}</td>"


def _is_share(cell: str) -> bool:
    try:
        return 0 <= float(cell) <= 1
    except ValueError:
        return False


def _html_picture(picture: Picture) -> str:
    try:
        data = base64.b64encode(picture.path.read_bytes()).decode()
    except OSError as error:
        raise RunError(f"{picture.path}: cannot be read ({error}); draw it again") from error
    return figure(f"data:image/png;base64,{data}", picture.caption)


def figure(address: str, caption: str) -> str:
    """A picture as HTML, with its caption.

    Args:
        address: a data: address.
        caption: text, which stands for the picture too where it isn't seen.
    """
    shown = html.escape(caption)
    return f'<figure><img alt="{shown}" src="{html.escape(address)}"><figcaption>{shown}</figcaption></figure>'


def to_markdown(title: str, sections: Sequence[Section], folder: Path) -> str:
    """The same in Markdown.

    Args:
        folder: where the text will lie; pictures are linked from there.
    """
    parts = [f"# {_plain(title)}"]
    for section in sections:
        parts.append(f"## {_plain(section.title)}")
        parts += [_plain(text) for text in section.paragraphs]
        if section.items:
            parts.append("\n".join(f"- {_plain(item)}" for item in section.items))
        if section.grid is not None:
            parts.append(_markdown_table(section.grid))
        for picture in section.pictures:
            link = picture.path.relative_to(folder).as_posix()
            parts.append(f"![{_plain(picture.caption)}]({link})\n\n{_plain(picture.caption)}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(grid: Grid) -> str:
    rows = [grid.headings, ["---", *["---:"] * (len(grid.headings) - 1)], *grid.rows]
    escaped = [[cell if i == 1 else _plain(cell) for cell in row] for i, row in enumerate(rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)


def _plain(text: str) -> str:
    """Text that Markdown shows as it is: no markup, no cell ends, no HTML."""
    for sign in "\\`*_[]<>|":
        text = text.replace(sign, f"\\{sign}")
    return " ".join(text.split())


def write_page(folder: Path, title: str, sections: Sequence[Section]) -> tuple[Path, Path]:
    """Writes page.html and page.md, each whole or not at all.

    Raises:
        RunError: a file cannot be written, or a picture not read.
    """
    paths = folder / "page.html", folder / "page.md"
    try:
        write_whole(paths[0], to_html(title, sections).encode())
        write_whole(paths[1], to_markdown(title, sections, folder).encode())
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error}); give another --out") from error
    return paths
