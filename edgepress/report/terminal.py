"""How anything is printed in the terminal: colours only where there is one, and no text that could move its cursor."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

STYLES = {"pass": "green", "fail": "red", "error": "magenta", "undecided": "yellow", "waived": "blue", "accepted": "cyan"}


def stdout(width: int | None = None) -> Console:
    """A console that styles nothing by guess and writes no colour into a pipe."""
    return Console(highlight=False, markup=False, emoji=False, width=width)


def table(title: str | None = None, **columns: str) -> Table:
    """A table without frames; each column's value is its justification."""
    made = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", header_style="dim", pad_edge=False, padding=(0, 1, 0, 0)
    )
    for name, justify in columns.items():
        made.add_column(name.replace("_", " "), justify="right" if justify == "right" else "left", overflow="fold")
    return made


def plain(text: object, style: str = "") -> Text:
    """Text of any origin: no markup, no control characters (a name must not move the cursor)."""
    return Text(tidy(str(text)), style=style)


def tidy(text: str) -> str:
    """Without the control characters a terminal would obey."""
    return "".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text)


def verdict_text(verdict: str) -> Text:
    """A verdict in its colour."""
    return plain(verdict, STYLES.get(verdict, ""))


def bullet(verdict: str, what: str, step: str | None = None) -> Table:
    """`verdict  sentence`, with the next step underneath; wrapped lines stay in their column."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=9)
    grid.add_column(overflow="fold")
    grid.add_row(verdict_text(verdict), plain(what))
    if step:
        grid.add_row("", plain(f"next: {step}", "dim"))
    return grid
