"""One table in every form it is read in: page, Markdown, CSV, LaTeX, terminal. Whatever a cell holds is text."""

import csv as csv_
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from rich.box import SIMPLE
from rich.table import Table as Terminal
from rich.text import Text

MISSING = "–"
MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|~$&!#@^]|:(?=//)|(?<=www)\.)", re.IGNORECASE)
LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: "\\" + sign for sign in "{}$&#%_"},
    **{sign: "{" + sign + "}" for sign in "[]*"},  # after \\ a bare one would be its option
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\char34{}",
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "…": r"\ldots{}",
    "’": "'",
    "\0": "{}",
}


class Cell(NamedTuple):
    """What stands in a cell.

    Attributes:
        text: as read.
        values: numbers in full precision: the first sorts, CSV has them all; empty: missing, or a cell of words.
        best: of its column, in bold.
        note: a few words after the text, in small.
    """

    text: str
    values: tuple[float, ...] = ()
    best: bool = False
    note: str = ""

    @property
    def whole(self) -> str:
        """Text and note."""
        return f"{self.text} {self.note}".strip()


class Column(NamedTuple):
    """A column's head.

    Attributes:
        name: as read.
        number: whether it holds numbers, which stand flush right.
        parts: what a cell's several values are, such as ("mean", "sd"): CSV has a column for each.
    """

    name: str
    number: bool = False
    parts: tuple[str, ...] = ()


class Table(NamedTuple):
    """Title, columns, rows of as many cells, and a remark to read with them."""

    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    note: str = ""


def number(value: float | None, decimals: int = 2, *, spread: float | None = None) -> Cell:
    """A number as a cell.

    Args:
        value: in the unit that is shown, per cent for accuracies; None: missing.
        decimals: shown.
        spread: likewise, after ±.
    """
    if value is None:
        return Cell(MISSING)
    text = f"{value:.{decimals}f}".replace("-", "−")
    return Cell(text, (value,)) if spread is None else Cell(f"{text} ± {spread:.{decimals}f}", (value, spread))


def best(rows: Sequence[Sequence[Cell]], columns: Mapping[int, Sequence[bool]]) -> list[list[Cell]]:
    """The rows, with the highest number of each of some columns marked: column -> which rows compete there."""
    marked = [list(row) for row in rows]
    for i, among in columns.items():
        compete = [row for row, counts in zip(marked, among, strict=True) if counts and row[i].values]
        highest = max((row[i].values[0] for row in compete), default=None)
        for row in compete:
            row[i] = row[i]._replace(best=row[i].values[0] == highest)
    return marked


def markdown(table: Table) -> str:
    """A table of GitHub's Markdown below its title."""
    rows = [[markdown_text(column.name) for column in table.columns]]
    rows += [["---:" if column.number else "---" for column in table.columns]]
    rows += [[f"**{markdown_text(c.whole)}**" if c.best else markdown_text(c.whole) for c in row] for row in table.rows]
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    below = ["", markdown_text(table.note)] if table.note else []
    return "\n".join([f"### {markdown_text(table.title)}", "", *lines, *below]) + "\n"


def latex(table: Table) -> str:
    """A LaTeX table in the style of the package booktabs."""
    rows = [[_latex(column.name) for column in table.columns]]
    rows += [[rf"\textbf{{{_latex(c.whole)}}}" if c.best else _latex(c.whole) for c in row] for row in table.rows]
    head, *body = [" & ".join(row) + r" \\" for row in rows]
    end = "" if table.title.endswith((".", "?", "!")) else "."
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(f'{table.title}{end} {table.note}'.strip())}}}",
        rf"\begin{{tabular}}{{{''.join('r' if column.number else 'l' for column in table.columns)}}}",
        r"\toprule",
        head,
        r"\midrule",
        *body,
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def csv(*tables: Table) -> str:
    """Comma-separated values in full precision, and in a last column what is noted beside numbers.

    Several tables share one head, and a first column has their titles.
    """
    head = [name for table in tables for column in table.columns for name in _names(column)]
    rows = [{"table": _csv(table.title)} | _fields(table, row) for table in tables for row in table.rows]
    head = list(dict.fromkeys(["table"] * (len(tables) > 1) + head + ["notes"] * any("notes" in row for row in rows)))
    text = io.StringIO()
    writer = csv_.writer(text, lineterminator="\n")
    writer.writerow(map(_csv, head))
    writer.writerows([row.get(name, "") for name in head] for row in rows)
    return text.getvalue()


def terminal(table: Table) -> Terminal:
    """The table for a terminal of 80 columns: numbers stay whole, words and the heads above numbers are folded."""
    shown = Terminal(title=Text(clean(table.title)), caption=Text(clean(table.note)) if table.note else None)
    shown.box, shown.padding, shown.show_edge = SIMPLE, (0, 0), False
    for i, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "right" if column.number else "left"
        width = max([len(clean(row[i].whole)) for row in table.rows if column.number], default=80)
        head = textwrap.wrap(clean(column.name), max(width, 1), break_long_words=False)
        shown.add_column(Text("\n".join(head)), justify=justify, no_wrap=column.number, overflow="fold")
    for row in table.rows:
        shown.add_row(*(Text(clean(cell.whole), style="bold" if cell.best else "") for cell in row))
    return shown


def markdown_text(text: str) -> str:
    """Text that Markdown shows as it is."""
    return MARKDOWN.sub(r"\\\1", clean(text))


def clean(text: str) -> str:
    """One line without the characters that command a terminal, turn the reading direction or are not seen."""
    line = "".join(" " if c.isspace() else c for c in text)
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)


def _names(column: Column) -> list[str]:
    return [f"{column.name} {part}".strip() for part in column.parts] or [column.name]


def _fields(table: Table, row: Sequence[Cell]) -> dict[str, str]:
    """What CSV has of a row, by the names in its head."""
    fields: dict[str, str] = {}
    for column, cell in zip(table.columns, row, strict=True):
        fields |= zip(_names(column), _values(column, cell), strict=False)
    noted = [(column, cell) for column, cell in zip(table.columns, row, strict=True) if column.number and cell.note]
    notes = _csv("; ".join(f"{column.name} {cell.note}" for column, cell in noted))
    return fields | ({"notes": notes} if noted else {})


def _values(column: Column, cell: Cell) -> list[str]:
    """What CSV has of a cell: numbers without signs, units and rounding, words as they are."""
    return [f"{value:.10g}" for value in cell.values] if column.number else [_csv(cell.whole)]


def _latex(text: str) -> str:
    text = re.sub("(?<=-)(?=-)", "\0", clean(text))  # two hyphens would be drawn as a dash
    return "".join(LATEX.get(c, c) for c in text)


def _csv(text: str) -> str:
    """A spreadsheet takes what begins like a formula for one; a quotation mark before it says that it is none."""
    text = clean(text)
    return "'" + text if text.lstrip().startswith(("=", "+", "-", "@")) else text
