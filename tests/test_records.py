"""What run directories say of themselves, whatever stands in them."""

import json

from pages import entry, make, page

from gacd import records
from gacd.cli import main
from gacd.records import collect


def test_odd_files_end_no_report(tmp_path, monkeypatch):
    """One run each with a stage, a number of parameters, an option and a name that none of ours has."""
    rows = [entry("natural", 0.9), entry("pgd20", 0.45, "8/255")]
    stage = dict(method="pgdat", model="resnet8", teacher=None, data="cifar10", weights=None)
    (make(tmp_path, "stages", rows) / "run.json").write_text(json.dumps(dict(stages=["x", stage])))
    content = dict(format=1, model="resnet8", parameters=10**400, results=rows)
    (make(tmp_path, "size", rows) / "results.json").write_text(json.dumps(content))
    make(tmp_path, "key", rows, options={1: 2})
    make(tmp_path, "name\udcff", rows)
    text, _ = page(tmp_path)
    assert text.count("45.0") >= 4 and "--1 2" in text
    assert main(["report", str(tmp_path), "--formats", "md", "csv", "tex", "claim"]) == 0


def test_a_run_reported_from_inside_has_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(make(tmp_path, "a", [entry("natural", 0.9)]))
    assert [run.name for run in collect(["."])] == ["a"]


def test_before_the_first_epoch_has_ended_no_course_is_drawn(tmp_path):
    rows = [dict(step=step, epoch=0, loss=1.0) for step in (50, 100)]
    run, done = make(tmp_path, "a", metrics=rows), [dict(step=200, epoch=0, loss=0.5, val_natural=0.3)]
    assert records.read(run, "a").curve("loss") == []
    (run / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows + done)))
    assert records.read(run, "a").curve("loss") == [(0.25, 1.0), (0.5, 1.0), (1.0, 0.5)]
