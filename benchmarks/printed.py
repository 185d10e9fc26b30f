"""Tables of benchmarks, for a terminal or to be pasted."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

WIDE = 140


def wide_console() -> Console:
    """A console for tables of many columns, also where a log has no width of its own."""
    console = Console()
    return Console(width=max(console.width, WIDE))


class Printer:
    """Prints tables, for a terminal or as Markdown."""

    def __init__(self, markdown: bool) -> None:
        self.markdown = markdown

    def table(self, title: str, columns: list[str], rows: list[list[str]]) -> None:
        """One table, its first column text and the others figures."""
        if self.markdown:
            ruler = ["---", *["---:"] * (len(columns) - 1)]
            print(f"\n{title}\n")
            print(*("| " + " | ".join(row) + " |" for row in [columns, ruler, *rows]), sep="\n")
            return
        table = Table(title=title, title_justify="left")
        for place, column in enumerate(columns):
            table.add_column(column, justify="right" if place else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        wide_console().print(table)
