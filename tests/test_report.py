"""The page: everything escaped, nothing fetched, whatever state the runs are in; its tables in other forms."""

import csv
import json
import re
import shlex

import pytest
import torch
from markupsafe import escape
from pages import HOSTILE, entry, make, page
from PIL import Image

from gacd import checkpoint, commands, methods, models, tables
from gacd.cli import main
from gacd.errors import InputError
from gacd.parser import Parser
from gacd.records import collect
from gacd.report import write
from gacd.training import fit


def test_nothing_in_files_becomes_markup(tmp_path):
    name = HOSTILE.replace("/", "∕")
    rows = [entry(HOSTILE, 0.5, "8/255", data=HOSTILE, norm=HOSTILE), entry("natural", 0.9, data=HOSTILE)]
    rows += [
        entry("pgd20", 0.4, e, data=HOSTILE, norm=HOSTILE, commit=HOSTILE, device=HOSTILE) for e in ("4/255", "0.1")
    ]
    make(tmp_path, name, rows, options={"teacher": HOSTILE, "init": HOSTILE, HOSTILE: HOSTILE})
    metrics = [dict(step=n, epoch=0, loss=1.0 / n, val_natural=0.5, val_robust=0.1) for n in (1, 2)]
    make(tmp_path, "_under", [], options={"method": HOSTILE}, metrics=metrics)
    text, document = page(tmp_path)
    assert [tag for tag, _ in document.elements].count("script") == 1
    assert not [tag for tag, _ in document.elements if tag in ("img", "iframe", "link", "object")]
    assert not [key for _, attributes in document.elements for key in attributes if key.startswith("on")]
    assert "{{ 7*7 }}" in text
    assert not document.open


def test_the_page_fetches_nothing(tmp_path):
    make(tmp_path, "a", [entry("natural", 0.9), entry("pgd20", 0.45, "8/255")])
    text, document = page(tmp_path)
    for tag, attributes in document.elements:
        for key in ("src", "href", "xlink:href"):
            assert attributes.get(key, "#").startswith(("#", "data:")), (tag, attributes)
    assert not re.search(r"url\((?!#)|@import", text)
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "content",
    [None, "", "[]", "{}", '{"results": 3}', '{"results": [7, {"accuracy": "x"}, {}]}', '{"results": []}', "\xff"],
)
def test_damaged_results_are_said_in_one_line(tmp_path, capsys, content):
    run = make(tmp_path, "broken")
    make(tmp_path, "whole", [entry("natural", 0.9), entry("pgd20", 0.45, "8/255")])
    if content is not None:
        (run / "results.json").write_bytes(content.encode("latin1"))
    text, _ = page(tmp_path)
    assert "45.0" in text
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("gacd: warning: broken: ")
    assert "not evaluated" in text or "cannot read results" in text


def test_only_results_of_the_weights_that_a_reader_takes(tmp_path):
    model = models.build("resnet8-x0.1", 10)
    run = make(
        tmp_path, "a", [entry("natural", 0.1), entry("natural", 0.9, sha256=checkpoint.digest(model), weights="probe")]
    )
    payload = dict(model=model.config(), weights=model.state_dict(), record={})
    checkpoint.write(run / "checkpoints" / "probe.pt", payload)
    (found,) = collect([str(tmp_path)])
    assert [m.accuracy for m in found.measured] == [0.9]
    model.head.bias.data += 1
    checkpoint.write(run / "checkpoints" / "probe.pt", payload | dict(weights=model.state_dict()))
    (found,) = collect([str(tmp_path)])
    assert not found.measured
    assert "other weights than probe" in found.warning


def test_the_command_makes_the_run_again(tmp_path):
    options = dict(
        teacher="runs/t", data="cifar10", model="resnet8", normalize=False, milestones=[3, 4], lr=0.05, seed=7
    )
    make(tmp_path, "a b", options=options | dict(method="gacd", size=None))
    (run,) = collect([str(tmp_path)])
    gacd, verb, method, *rest = shlex.split(run.command)
    assert (gacd, verb, method) == ("gacd", "distill", "gacd")
    parser = Parser("gacd", "")
    cls = methods.load(method)
    parser.add(cls, group="method")
    parser.add(commands.train, group="run", skip={"method", "method_options", "fit_options"})
    parser.add(fit, group="training")
    values = parser.read(rest)
    assert {name: values[name] for name in options} == options
    assert values["out"] == str(tmp_path / "a b")
    assert values["eps"] == pytest.approx(8 / 255)


def test_the_page_draws_what_there_is_and_says_each_command(tmp_path):
    metrics = [dict(step=n, epoch=n, val_natural=0.5, val_robust=0.1, loss=1.0 / n) for n in (1, 2)]
    rows = [entry("natural", 0.9), *(entry("pgd20", 0.4, eps, steps=20) for eps in ("4/255", "8/255"))]
    run = make(tmp_path, "a", rows, options=dict(teacher="it's <b>"), metrics=metrics)
    drawn = ["robust by natural accuracy", "accuracy by eps", "held-out natural accuracy", "held-out PGD", "loss"]
    text, document = page(tmp_path)
    assert [attributes["aria-label"] for tag, attributes in document.elements if tag == "svg"] == drawn
    (found,) = collect([str(tmp_path)])
    assert f"<pre>{escape(found.command)}</pre>" in text
    assert "it's <b>" in shlex.split(found.command)
    content = json.loads((run / "results.json").read_text())
    content["results"].append(entry("pgd5", 0.5, "8/255", steps=5))
    (run / "results.json").write_text(json.dumps(content))
    (run / "metrics.jsonl").unlink()
    labels = [attributes["aria-label"] for tag, attributes in page(tmp_path)[1].elements if tag == "svg"]
    assert labels == [*drawn[:2], "accuracy by steps"]


def test_no_runs_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert main(["report", str(tmp_path / "missing"), str(tmp_path)]) == 1
    assert [line.split(":")[2] for line in capsys.readouterr().err.splitlines()] == [" no runs in", " no such folder"]
    assert not (tmp_path / "missing").exists()
    with pytest.raises(InputError):
        collect([str(tmp_path)])


def test_pictures_of_adversarial_images_or_the_reason_why_not(tmp_path):
    torch.manual_seed(0)
    model = models.build("resnet8-x0.1", 10, [0.3], [0.3])
    sha256 = checkpoint.digest(model)
    rows = [
        entry(name, share, eps, data="digits", sha256=sha256)
        for name, share, eps in (("natural", 0.9, None), ("pgd20", 0.1, "0.1"))
    ]
    run = make(tmp_path, "a", rows)
    checkpoint.write(run / "checkpoints" / "best.pt", dict(model=model.config(), weights=model.state_dict()))
    text, _ = page(tmp_path)
    assert text.count("<image ") == 3 * 6
    assert (tmp_path / "report.html").read_text() == page(tmp_path)[0], "the same runs, the same page"
    make(tmp_path, "b", [entry("pgd20", 0.0, "0.1", data="digits")])
    assert "No adversarial images: no checkpoint in run" in page(tmp_path)[0]


def seeds(root, method="pgdat", shares=(0.40, 0.42, 0.47), **more):
    for seed, share in enumerate(shares):
        rows = [entry("natural", 0.9), entry("worst", share, "8/255"), entry("pgd20", share, "8/255", steps=20)]
        make(root, f"{method}-{seed}", rows, options=dict(method=method, seed=seed), **more)


def test_repeated_runs_have_a_table_of_their_own(tmp_path):
    metrics = [dict(step=n, epoch=n, val_natural=0.5, val_robust=0.1, loss=1.0) for n in (1, 2)]
    seeds(tmp_path, metrics=metrics)
    text, document = page(tmp_path)
    assert not document.open
    assert {"43.0 ± 3.6", "90.0 ± 0.0"} <= set(document.cells)
    assert len(set(re.findall(r'id="s0a-run(\d+)"', text))) == 1, "figures show the mean"
    (tmp_path / "single").mkdir()
    make(tmp_path / "single", "a", [entry("natural", 0.9), entry("pgd20", 0.45, "8/255")])
    text, _ = page(tmp_path / "single")
    assert "ver seeds" not in text and "±" not in text


def test_the_other_forms_stand_beside_the_page(tmp_path, capsys):
    seeds(tmp_path)
    page(tmp_path, "--formats", "html", "md", "csv", "tex", "claim")
    assert len(capsys.readouterr().out.splitlines()) == 5
    text = {path.name: path.read_text() for path in tmp_path.glob("report*")}
    assert text.keys() == {"report.html", "report.md", "report.csv", "report.tex", "report-claim.md"}
    assert "| pgdat | pgdat | resnet8 | 3 | **90.0 ± 0.0** | 43.0 ± 3.6 | **43.0 ± 3.6** | 200 |" in text["report.md"]
    assert r"pgdat & pgdat & resnet8 & 3 & \textbf{90.0 $\pm$ 0.0} & 43.0 $\pm$ 3.6" in text["report.tex"]
    rows = list(csv.DictReader(text["report.csv"].splitlines()))
    assert [row["run"] for row in rows] == ["pgdat-2", "pgdat-1", "pgdat-0", "pgdat"]
    assert float(rows[0]["95 % interval low"]) == pytest.approx(39.93, abs=0.01)
    assert float(rows[-1]["worst sd"]) == pytest.approx(3.606, abs=1e-3)


def test_the_page_is_never_written_over_by_its_tables(tmp_path):
    make(tmp_path, "a", [entry("natural", 0.9)])
    place = str(tmp_path / "x.md")
    assert main(["report", str(tmp_path), "--out", place, "--formats", "html", "md"]) == 0
    assert (tmp_path / "x.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "x.md").read_text().startswith("### Accuracy")
    assert main(["report", str(tmp_path), "--out", place]) == 0
    assert (tmp_path / "x.md").read_text().startswith("<!doctype html>")


def test_wrong_options_are_one_line(tmp_path, capsys):
    make(tmp_path, "a", [entry("natural", 0.9)])
    assert main(["report", str(tmp_path), "--formats", "md", "pdf"]) == 2
    assert main(["report", str(tmp_path), "--out", str(tmp_path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line[:28] for line in lines] == ["gacd: error: unknown format:", "gacd: error: --out is a fold"]
    assert not list(tmp_path.glob("report*"))


def test_hostile_runs_are_harmless_in_every_form(tmp_path):
    name = "=1+1 |" + HOSTILE.replace("/", "∕") + r"\input{x} & \\ [31m"
    row = dict(data=name, norm=name, commit=name, weights=name, sha256=name)
    make(tmp_path, name, [entry("natural", 0.9, **row), entry(name, 0.4, "8/255", **row)], options={"teacher": name})
    page(tmp_path, "--formats", "md", "csv", "tex", "claim", "html")
    text = {path.suffix + path.stem[6:]: path.read_text() for path in tmp_path.glob("report*")}
    assert not any("\x1b" in form for form in text.values())
    for form in (text[".md"], re.sub("(?m)^    .*", "", text[".md-claim"])):  # but for the indented command
        assert "<" not in re.sub(r"\\[!-/:-@\[-`{-~]", "", form)
    assert not re.search(r"\\input|(?<!\\)&.*\\\\ .*&", text[".tex"])
    assert csv.DictReader(text[".csv"].splitlines()).fieldnames[0] == "run"
    assert next(csv.DictReader(text[".csv"].splitlines()))["run"].startswith("'=1+1")


def test_figures_of_an_analysis_are_embedded(tmp_path, capsys):
    make(tmp_path, "a", [entry("natural", 0.9)])
    folder = tmp_path / "analysis"
    folder.mkdir()
    Image.new("RGB", (90, 30)).save(folder / "broad <b>.png")
    Image.new("RGB", (30, 30)).save(folder / "plain.png")
    (folder / "not.png").write_text(HOSTILE)
    (folder / "large.png").write_bytes((folder / "plain.png").read_bytes() + bytes(5 << 20))
    (folder / "gone.png").mkdir()
    (folder / "analysis.json").write_text(json.dumps({"figures": {"plain.png": HOSTILE, "not.png": 3}}))
    Image.new("RGB", (30, 30)).save(tmp_path / "a" / "elsewhere.png")
    text, document = page(tmp_path)
    images = [attributes for tag, attributes in document.elements if tag == "img"]
    assert [image["alt"] for image in images] == ["broad <b>", "plain"]
    assert all(image["src"].startswith("data:image/png;base64,iVBORw0KGgo") for image in images)
    assert text.count("<script>") == 1 and "{{ 7*7 }}" in text and not document.open
    assert set(re.findall(r"\w+\.png", capsys.readouterr().err)) == {"large.png", "not.png", "gone.png"}
    (folder / "analysis.json").write_text("[")
    assert page(tmp_path)[0].count("<img") == 2


def test_trainings_say_commit_and_versions(tmp_path):
    run = make(tmp_path, "a", [entry("natural", 0.9)])
    start = dict(time="2031-01-01T00:00:00Z", commit="fed987", device="a GPU", versions={"torch": "2.99"})
    (run / "run.json").write_text(json.dumps(dict(starts=[start, 3, dict(versions=7)])))
    text = page(tmp_path)[0]
    assert "Trained from 2031-01-01T00:00:00Z on with commit fed987, a GPU, torch 2.99." in text
    (run / "run.json").write_text('{"starts": 7}')
    assert "Trained from" not in page(tmp_path)[0]


def test_tables_from_elsewhere_stand_first(tmp_path):
    make(tmp_path, "a", [entry("natural", 0.9)])
    rows = [[tables.Cell("<i>"), tables.number(-1.5)]]
    beside = tables.Table("Paper <b>", [tables.Column("cell"), tables.Column("difference", True)], rows, "A note <u>.")
    write(tmp_path / "x.html", collect([str(tmp_path)]), beside=[beside])
    text = (tmp_path / "x.html").read_text()
    assert text.index("Paper &lt;b&gt;") < text.index("Accuracy on cifar10")
    assert 'data-value="-1.5">−1.50<' in text and "A note &lt;u&gt;." in text and "&lt;i&gt;" in text


def test_runs_of_several_folders_have_names_of_their_own(tmp_path):
    for parent in "xy":
        make(tmp_path / parent, "runs/a", [entry("natural", 0.9)])
    found = collect([str(tmp_path / parent / "runs") for parent in "xy"])
    assert len({run.name for run in found}) == 2


def test_a_number_that_an_audit_doubts_says_so_in_every_form(tmp_path, monkeypatch):
    doubt = dict(verdict="SUSPECT", doubts=["suspect: gradient: most are zero"])
    make(tmp_path, "masked", [entry("natural", 0.9), entry("pgd20", 0.85, "8/255", **doubt)])
    make(tmp_path, "sound", [entry("natural", 0.9), entry("pgd20", 0.45, "8/255", verdict="TRUSTED")])
    text, _ = page(tmp_path)
    assert "SUSPECT is an unverified upper bound" in text
    monkeypatch.chdir(tmp_path)
    main(["report", ".", "--formats", "md", "csv", "tex", "claim", "--out", "all"])
    for form in ("md", "csv", "tex"):
        assert all(verdict in (tmp_path / f"all.{form}").read_text() for verdict in ("SUSPECT", "TRUSTED")), form
    claim = next(tmp_path.rglob("*claim*")).read_text()
    assert "an unverified upper bound, suspect: gradient: most are zero" in " ".join(claim.split())


def test_an_attack_in_doubt_marks_its_own_number_not_the_worst_case(tmp_path, monkeypatch):
    blind = entry("pgd20", 0.85, "8/255", verdict="SUSPECT", doubts=["suspect: beside other attacks: beat 40 more"])
    rest = [entry(name, 0.45, "8/255", verdict="TRUSTED") for name in ("margin20", "worst")]
    make(tmp_path, "a", [entry("natural", 0.9), blind, *rest])
    monkeypatch.chdir(tmp_path)
    main(["report", ".", "--formats", "md", "claim", "--out", "all"])
    row = next(line for line in (tmp_path / "all.md").read_text().splitlines() if line.startswith("| a |"))
    assert "| 85.0 unverified |" in row and "TRUSTED" in row and row.count("unverified") == 1, row
    assert "unverified" not in (tmp_path / "all-claim.md").read_text()
