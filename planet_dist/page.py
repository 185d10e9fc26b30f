"""A page of tables and pictures, as one HTML file with all in it, and as Markdown beside its pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.errors import RunError
from shards.schema import write_whole

_CSS = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem; padding: 1rem; color: #1a1a1a; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid #ccc; padding-top: 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 0.5rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { border-bottom: 2px solid #666; vertical-align: bottom; white-space: normal; min-width: 4.5rem; }
th:first-child, td:first-child { text-align: left; }
figure { margin: 1.5rem 0; }
figure img { max-width: 100%; height: auto; }
figcaption { font-size: 0.9rem; color: #444; }
ul { padding-left: 1.2rem; }
"""


@dataclass(frozen=True)
class Grid:
    """A table: headings, and rows of as many cells."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


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
            body.append(_html_table(section.grid))
        body += [_html_picture(picture) for picture in section.pictures]
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_CSS}</style>"
    )
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _html_table(grid: Grid) -> str:
    head = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in grid.headings)
    rows = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in grid.rows]
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _html_picture(picture: Picture) -> str:
    try:
        data = base64.b64encode(picture.path.read_bytes()).decode()
    except OSError as error:
        raise RunError(f"{picture.path}: cannot be read ({error}); draw it again") from error
    caption = html.escape(picture.caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"


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
