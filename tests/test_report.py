"""The page: the right numbers, everything escaped, nothing fetched, whatever state the runs are in."""

import csv
import html.parser
import json
import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from gacd import checkpoint, figures, models, tables
from gacd.cli import Parser, main
from gacd.errors import InputError
from gacd.records import collect
from gacd.report import write
from gacd.sections import percent, sections

HOSTILE = """<script>alert(1)</script>"''><img src=x onerror=alert(2)>{{ 7*7 }}--> $x^"""


def entry(attack, accuracy, eps=None, n=200, data="cifar10", sha256="a", **more):
    threat = dict(norm="Linf", eps=eps, step_size="2/255") if eps else {}
    row = dict(weights="best", sha256=sha256, data=data, n=n, attack=attack, accuracy=accuracy, seed=0, seconds=1.5)
    return row | threat | dict(commit="abc123", device="a CPU", versions={"torch": "2.13.0"}) | more


def make(root, name, rows=None, *, options=None, metrics=None):
    run = root / name
    run.mkdir(parents=True)
    options = dict(method="pgdat", model="resnet8", data="cifar10", eps="8/255", epochs=2) | (options or {})
    (run / "config.yaml").write_text(yaml.safe_dump(options, sort_keys=False))
    if rows is not None:
        content = dict(format=1, model="resnet8", parameters=12345, results=rows)
        (run / "results.json").write_text(json.dumps(content))
    if metrics is not None:
        (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, metrics)) + "\n{torn")
    return run


def page(root, *options):
    assert main(["report", str(root), *options]) == 0
    text = (root / "report.html").read_text()
    document = Document()
    document.feed(text)
    return text, document


class Document(html.parser.HTMLParser):
    """Collects elements, and checks that they nest."""

    def __init__(self):
        super().__init__()
        self.open, self.elements, self.cells = [], [], []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data.strip()


def test_numbers_are_the_right_ones(tmp_path):
    rows = [
        entry("natural", 0.9),
        entry("pgd20", 0.45, "8/255"),
        entry("fgsm", 0.6, "8/255"),
        entry("pgd20", 0.2, "16/255"),
    ]
    rows += [
        entry("pgd20", 0.44, "8/255", seed=1),
        entry("worst", 0.43, "8/255"),
        entry("pgd20", 0.7, "4/255", versions=3, commit=None),
    ]
    make(tmp_path, "a", rows)
    make(tmp_path, "b", [entry("natural", 0.8), entry("pgd20", 0.5, "8/255")])
    (section,) = sections(collect([str(tmp_path)]))
    assert [str(part) for part in section.threat] == ["Linf", "8/255"]
    assert [line.run.name for line in section.lines] == ["b", "a"], "the most robust first"
    a = section.lines[1]
    assert (a.natural.accuracy, a.attacks["pgd20"].accuracy, a.worst.accuracy) == (0.9, 0.44, 0.43)
    curve = section.robust(a.run, "pgd20")
    assert [accuracy for _, accuracy in curve] == [0.9, 0.7, 0.44, 0.2]
    text, document = page(tmp_path)
    assert not document.open
    assert {"90.0", "44.0", "43.0", "12,345"} <= set(document.cells)
    assert "–".join(f" {v} " for v in ("36.0", "50.2")).strip() in text.replace("&ndash;", "–")
    assert {"abc123", "2.13.0", "a CPU"} <= set(re.findall(r"abc123|2\.13\.0|a CPU", text))


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


def test_runs_with_other_n_and_other_data_are_not_mixed(tmp_path):
    make(tmp_path, "a", [entry("natural", 0.9), entry("pgd20", 0.45, "8/255")])
    make(
        tmp_path,
        "b",
        [entry("natural", 0.9, n=10), entry("pgd20", 0.4, "8/255", n=10), entry("natural", 0.7, data="stl10")],
    )
    text, document = page(tmp_path)
    assert [section.data for section in sections(collect([str(tmp_path)]))] == ["cifar10", "stl10"]
    assert "differ in n" in text
    assert {"10", "200"} <= set(document.cells)


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
    from gacd import commands, methods
    from gacd.training import fit

    options = dict(
        teacher="runs/t", data="cifar10", model="resnet8", normalize=False, milestones=[3, 4], lr=0.05, seed=7
    )
    make(tmp_path, "a b", options=options | dict(method="gacd", size=None))
    (run,) = collect([str(tmp_path)])
    import shlex

    gacd, verb, method, *rest = shlex.split(run.command)
    assert (gacd, verb, method) == ("gacd", "distill", "gacd")
    parser = Parser("gacd", "")
    cls = methods.load(method)
    parser.add(cls, group="method", owner=cls.__init__)
    parser.add(commands.train, group="run", skip={"method", "method_options", "fit_options"})
    parser.add(fit, group="training")
    values = parser.read(rest)
    assert {name: values[name] for name in options} == options
    assert values["out"] == str(tmp_path / "a b")
    assert values["eps"] == pytest.approx(8 / 255)


def test_no_runs_is_one_line(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 1
    assert main(["report", str(tmp_path / "missing")]) == 1
    assert all(line.startswith("gacd: error: no runs in") for line in capsys.readouterr().err.splitlines())
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


def test_figures_draw_every_run_once():
    names = [f"run {i}" for i in range(12)]
    points = {name: figures.Point(0.5 + i / 30, 0.5 - i / 30, 0.0, 1.0) for i, name in enumerate(names)} | {
        "none": None
    }
    drawn = figures.svg(figures.scatter(points, "Linf 8/255"), "p", "title")
    assert set(re.findall(r'id="p-run(\d+)"', drawn)) == {str(i) for i in range(12)}
    assert "none" not in "".join(ElementTree.fromstring(drawn).itertext())
    for share in (True, False):
        lines = {name: [(0.0, 1.0), (1.0, i / 12)] for i, name in enumerate(names)} | {"none": []}
        drawn = figures.svg(figures.curves(lines, "x", "y", share=share), "c", "title")
        texts = [element.text for element in ElementTree.fromstring(drawn).iter("{http://www.w3.org/2000/svg}text")]
        assert sorted(text for text in texts if text.startswith("run")) == sorted(names)


def test_pictures_have_a_row_per_run_and_kind(tmp_path):
    x = np.random.default_rng(0).random((4, 3, 8, 8))
    figure = figures.pictures(x, {"a": figures.Picture(x, list("1234"), list("1294"))})
    assert len(figure.axes) == 3 * 4
    assert [axes.get_title() for axes in figure.axes[8:]] == ["1", "2", "3 → 9", "4"]
    figures.png(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_pareto_front_leaves_out_what_is_beaten():
    assert figures.pareto([(0.9, 0.1), (0.8, 0.3), (0.8, 0.2), (0.7, 0.3), (0.5, 0.5)]) == [
        (0.5, 0.5),
        (0.8, 0.3),
        (0.9, 0.1),
    ]


def test_decimals_are_those_that_n_can_tell():
    assert percent(0.12345, 1000) == "12.3"
    assert percent(0.12345, 10_000) == "12.35"


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


def test_accuracy_by_steps(tmp_path):
    shares = {1: 0.6, 5: 0.5, 20: 0.45, 50: 0.44}
    rows = [entry("natural", 0.9), *(entry(f"pgd{k}", v, "8/255", steps=k) for k, v in shares.items())]
    rows += [entry("pgd20", 0.46, "8/255", steps=20, seed=1), entry("pgd50", 0.1, "16/255", steps=50)]
    make(tmp_path, "a", [*rows, entry("margin20", 0.4, "8/255", steps=20)])
    (section,) = sections(collect([str(tmp_path)]))
    assert section.by_steps(section.runs[0], "pgd") == sorted(shares.items())
    assert section.by_steps(section.runs[0], "margin") == [(20, 0.4)]
    assert "against the number of its steps" in page(tmp_path)[0]


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
    rows = [[tables.Cell("<i>"), tables.number(-1.5, sign=True)]]
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
