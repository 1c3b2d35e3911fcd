"""The published numbers: every table of docs/results.md is what the committed results.json give, to the digit."""

import importlib.util
import json
from pathlib import Path

import pytest

from gacd import tables
from gacd.cli import training_parser
from gacd.parser import plain
from gacd.recipe import RECIPES, expand
from gacd.reproduce import beside, lines_of
from gacd.runs import FREE, config

ROOT = Path(__file__).parents[1]
SMALL = RECIPES / "presets/small.sh"
PUBLISHED = sorted(
    path.stem for path in (ROOT / "results/small").glob("*.md") if (RECIPES / path.name).with_suffix(".sh").exists()
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_tables_are_what_the_results_give(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    _, rows = expand(RECIPES / f"{name}.sh", OUT="results/small", PRESET=str(SMALL), SEEDS="0 1 2")
    table = beside(name, lines_of(rows))
    assert tables.markdown(table) == (ROOT / f"results/small/{name}.md").read_text()


@pytest.mark.parametrize("name", [*PUBLISHED, "figures34", "figure5"])
def test_every_training_was_what_its_recipe_says_to_the_last_option(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands, _ = expand(RECIPES / f"{name}.sh", OUT="results/small", PRESET=str(SMALL), SEEDS="0 1 2")
    for command, method, *words in (argv for argv in commands if argv[0] in ("train", "distill")):
        says = plain(training_parser(command, method).read(words))
        if not Path(says["out"]).exists():
            continue  # a dash in its table
        made = config(Path(says["out"]))
        left = FREE | {"out", "cost_of", "precision"} | ({"epochs", "milestones"} if says["cost_of"] else set())
        left |= {option for option in ("data", "model") if says[option] is None}  # those of the start or the teacher
        says |= dict(method=method, teacher=says.get("teacher"))
        assert {o: made[o] for o in made.keys() - left} == {o: says[o] for o in says.keys() - left}, says["out"]


def test_the_pages_show_the_tables():
    spec = importlib.util.spec_from_file_location("page", ROOT / "benchmarks/page.py")
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    for path in page.PAGES:
        assert page.filled(path.read_text()) == path.read_text(), path.name
    assert {place[2] for place in page.PLACE.finditer(page.PAGES[1].read_text())} == set(PUBLISHED)


def test_the_table_of_figure_5_is_what_its_analysis_says():
    found = json.loads((ROOT / "results/small/figure5/analysis.json").read_text())
    shown = (ROOT / "docs/results.md").read_text()
    names = {"standard": "standard-0", "ARD": "ard-0", "GACD": "gacd-0", "GACD+AFT": "gacd-aft-0"}
    for title, name in names.items():
        student, ratio = found["students"][name], found["clusters"]["networks"][name]["ratio"]
        natural, adversarial, nats = student["natural"], student["adversarial"], student["information"]
        differences = f"{natural['correlation']['difference']:.3f} / {adversarial['correlation']['difference']:.3f}"
        alike = f"{natural['cka']:.2f} / {adversarial['cka']:.2f}"
        assert (
            f"| {title} | {ratio:.2f} | {differences} | {alike} | {nats['bound']:.2f} | {nats['eq11']:.2f} |" in shown
        )
    assert f"| teacher | {found['clusters']['networks']['teacher']['ratio']:.2f} |" in shown


def test_the_table_of_figures_3_and_4_is_what_its_analysis_says():
    found = json.loads((ROOT / "results/small/figures34/analysis.json").read_text())
    shown = (ROOT / "docs/results.md").read_text()
    for title, name in {"ARD": "ard-0", "GACD": "gacd-0", "GACD+AFT": "gacd-aft-0"}.items():
        natural, adversarial = found["students"][name]["natural"], found["students"][name]["adversarial"]
        differences = [f"{seen['correlation']['difference']:.3f}" for seen in (natural, adversarial)]
        alike = [f"{seen['cka']:.2f}" for seen in (natural, adversarial)]
        assert f"| {title} | {' | '.join(differences + alike)} |" in shown


def test_the_held_out_accuracies_of_the_learning_rates_are_those_of_the_runs():
    shown = (ROOT / "docs/results.md").read_text()
    for title, name in {"PGD-AT": "pgdat{}", "ARD": "ard{}", "RSLAD": "rslad{}", "GACD+AFT": "gacd{}-aft"}.items():
        cells = []
        for rate in ("-half", "", "-double", "-fourfold"):
            course = ROOT / f"results/small/claim/{name.format(rate)}-0/metrics.jsonl"
            lines = map(json.loads, course.read_text().splitlines() if course.exists() else [])
            best = max((line["val_robust"] for line in lines if "val_robust" in line), default=None)
            cells.append(tables.MISSING if best is None else f"{100 * best:.1f}")
        assert f"| {title} | {' | '.join(cells)} |" in shown
