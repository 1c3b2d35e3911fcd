"""Tables: the same cells in every form, and no form takes a cell for anything but text."""

import csv as csv_
import io
import re

import pytest
from rich.console import Console

from gacd.tables import MISSING, Cell, Column, Table, best, clean, csv, latex, markdown, number, terminal

HOSTILE = [
    r"\input{/etc/passwd} \\[1em] $x^2$ & #1 100% ~_{a}",
    "]* [x](javascript:alert(1)) ![](http://e.com/x.png) **b** `c` |d| <img src=x onerror=alert(1)> www.e.com &lt;",
    '=cmd|"/c calc"!A1',
    "  +1",
    "-2",
    "@SUM(A1)",
    "\x1b]8;;http://e.com\x07link\x1b[31m\r\n\t[bold]rich[/bold] [link=http://e.com]x",
    "\u202eright to left\u2066\u200b\ud800\0",
    "",
    "---",
]
COLUMNS = [Column("run"), Column("natural", True, ("mean", "sd")), Column("n", True)]


def table(*names, title="Title"):
    cells = [[Cell(name), number(81.234, spread=0.4), Cell("1,000", (1000.0,))] for name in names]
    return Table(title, COLUMNS, cells, "A note.")


def test_every_form_has_the_same_cells():
    made = Table("T", COLUMNS, [[Cell("a", note="by b"), number(81.234, spread=0.456), number(None)]])
    assert markdown(made).splitlines()[2:] == [
        "| run | natural | n |",
        "| --- | ---: | ---: |",
        "| a by b | 81.23 ± 0.46 | – |",
    ]
    assert r"a by b & 81.23 $\pm$ 0.46 & -- \\" in latex(made)
    assert csv(made) == "run,natural mean,natural sd,n\na by b,81.234,0.456,\n"
    assert shown(made).splitlines()[-1].split() == ["a", "by", "b", "81.23", "±", "0.46", "–"]


def test_numbers_are_rounded_signed_and_may_be_missing():
    assert [number(v, 1).text for v in (1.25, -1.25, None)] == ["1.2", "−1.2", MISSING]
    assert number(-3.0).values == (-3.0,)
    assert csv(Table("", [Column("d", True)], [[number(-3.0)]])) == "d\n-3\n", "a negative number is no formula"


def test_the_best_of_a_column_is_bold_and_missing_ones_are_not():
    rows = best([[Cell("a"), number(1.0)], [Cell("b"), number(2.0)], [Cell("c"), number(None)]], {1: [True] * 3})
    assert [[cell.best for cell in row] for row in rows] == [[False, False], [False, True], [False, False]]
    made = Table("T", [Column("x"), Column("y", True)], rows)
    assert "| b | **2.00** |" in markdown(made)
    assert r"b & \textbf{2.00} \\" in latex(made)
    assert best([[number(None)]], {0: [True]}) == [[number(None)]]
    assert [row[0].best for row in best([[number(v)] for v in (3.0, 1.0, 2.0)], {0: [False, True, True]})] == [0, 0, 1]


def test_markdown_is_escaped():
    for line in markdown(table(*HOSTILE, title=HOSTILE[1])).splitlines()[4:-2]:
        assert len(re.findall(r"(?<!\\)\|", line)) == len(COLUMNS) + 1
    text = markdown(table(*HOSTILE, title="# " + HOSTILE[1]))
    bare = re.sub(r"\\[!-/:-@\[-`{-~]", "", text)
    assert not re.search(r"[<>`\[\]*$&\\]", bare)
    assert "http://" not in bare and "www.e" not in bare


def test_latex_is_escaped():
    text = latex(table(*HOSTILE, title=HOSTILE[0]))
    for name, body in re.findall(r"\\([a-zA-Z]+)(\{[^}]*\})?", text):
        known = "begin end centering caption toprule midrule bottomrule pm ldots char textbackslash textasciitilde"
        assert name in [*known.split(), "textasciicircum", "textless", "textgreater", "textbar"], (name, body)
    rows = text.split("\\midrule\n")[1].split("\\bottomrule")[0].splitlines()
    assert len(rows) == len(HOSTILE)
    for row in rows:
        assert row.endswith(r" \\")
        assert not row.startswith(("[", "*"))  # options of the \\ before
        assert len(re.findall(r"(?<!\\)&", row)) == len(COLUMNS) - 1
        assert len(re.findall(r"(?<!\\)\{", row)) == len(re.findall(r"(?<!\\)\}", row))
        assert not re.search(r"(?<!\\)[%#_~^]|--(?!-)\S", row)
        assert row.count("$") - row.count(r"\$") == 2, "those of ±"
    assert "-{}-{}-" in rows[-1]


def test_csv_is_quoted_and_nothing_begins_like_a_formula():
    rows = list(csv_.DictReader(io.StringIO(csv(table(*HOSTILE)))))
    assert len(rows) == len(HOSTILE)
    for row, name in zip(rows, HOSTILE, strict=True):
        assert (row["natural mean"], row["natural sd"], row["n"]) == ("81.234", "0.4", "1000")
        assert row["run"].removeprefix("'") == clean(name).strip()
        assert not row["run"].lstrip().startswith(("=", "+", "-", "@"))


def test_csv_has_what_is_noted_beside_numbers():
    columns = [Column("run"), Column("pgd20", True), Column("worst", True)]
    cells = [[Cell("a", note="words"), Cell("1", (1,), note="of 2"), Cell("2", (2,), note="unverified")]]
    text = csv(Table("A", columns, [*cells, [Cell("b"), Cell("1", (1,)), Cell("2", (2,))]]))
    assert text == "run,pgd20,worst,notes\na words,1,2,pgd20 of 2; worst unverified\nb,1,2,\n"


def test_what_is_noted_begins_like_no_formula_either():
    made = Table("", [Column("=1+1", True)], [[Cell("1", (1,), note="unverified")]])
    (row,) = csv_.reader(io.StringIO(csv(made).splitlines()[1]))
    assert row == ["1", "'=1+1 unverified"]


def test_csv_of_several_tables_has_one_head():
    other = Table("=B", [Column("run"), Column("eps", True)], [[Cell("b"), Cell("8/255", (8 / 255,))]])
    rows = list(csv_.DictReader(io.StringIO(csv(table("a", title="A"), other))))
    assert [(row["table"], row["run"], row["n"], row["eps"]) for row in rows] == [
        ("A", "a", "1000", ""),
        ("'=B", "b", "", "0.03137254902"),
    ]


def test_the_terminal_obeys_no_cell():
    text = shown(table(*HOSTILE, title=HOSTILE[6]))
    assert "\x1b" not in text and "\x07" not in text and "\u202e" not in text
    assert "[bold]rich[/bold]" in text.replace("\n", "")
    assert max(map(len, text.splitlines())) <= 80


def test_the_terminal_folds_heads_before_names_and_never_numbers():
    columns = [Column(""), *(Column(f"paper: pgd{i}", True) for i in range(6))]
    name = "ResNet-18 / ResNet-18 / GACD+AFT"
    text = shown(Table("T", columns, [[Cell(name), *(number(10.0 + i) for i in range(6))]]))
    assert name in text and "paper: pgd" not in text
    text = shown(Table("T", columns, [[Cell(name), *(number(10.0 + i, spread=0.1) for i in range(6))]]))
    assert all(f"1{i}.00 ± 0.10" in text for i in range(5))


@pytest.mark.parametrize("text", HOSTILE)
def test_clean_leaves_one_line_that_can_be_seen(text):
    assert clean(text).isprintable()
    assert len(clean(text)) == len(text)


def shown(made):
    console = Console(file=io.StringIO(), width=80, color_system=None)
    console.print(terminal(made))
    return console.file.getvalue()
