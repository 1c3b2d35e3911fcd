"""The networks that are compared: who stands beside whom, and under which name."""

import pytest
import torch
from students import save

from gacd import analysis, checkpoint, data, lineup, models
from gacd.errors import InputError, UsageError


def test_two_classes_are_the_least(digits):
    net = lineup.Network("a", "a", checkpoint.Opened(models.build("resnet8-x0.1", 1, [0], [1]), "best"))
    one = data.Dataset("one", digits.train, digits.val, digits.test, ["only"], (0,), (1,))
    with pytest.raises(InputError, match="at least two classes"):
        lineup.check(net, net, one)
    with pytest.raises(InputError, match="four of the second"):
        analysis.of_two_classes(digits.test.take(torch.tensor([0, 1])), [0, 1], 10)


def test_names_are_as_short_as_tells_them_apart():
    named = lineup.short_names(["runs/a", "other/a", "runs/b-0.1", "x:y/c.pt", "a", "runs/b-0.1/checkpoints/last.pt"])
    assert list(named.values()) == ["runs/a", "other/a", "b-0.1", "c", "a", "b-0.1/last"]
    assert list(lineup.short_names(["x/t.pt", "x/t.pth"]).values()) == ["x/t.pt", "x/t.pth"]


def test_foreign_teachers_are_normalised_as_the_run_s_own_was(taught, digits, tmp_path, monkeypatch):
    torch.save(checkpoint.load(str(taught / "a")).state_dict(), tmp_path / "t.pt")
    state = {k: v for k, v in torch.load(tmp_path / "t.pt").items() if k not in ("mean", "std")}
    torch.save(state, tmp_path / "t.pt")
    source = f"resnet8-x0.25:{tmp_path / 't.pt'}"
    save(tmp_path / "s", checkpoint.load(str(taught / "a")), digits, teacher=source, mean=[0.25], std=[0.5])
    _, teacher, host = lineup.networks([str(tmp_path / "s")], None, None, None, None)
    assert teacher.opened.model.mean.item() == 0.25
    assert host.name == "s"
    _, teacher, _ = lineup.networks([str(tmp_path / "s")], None, None, [0.75], [0.5])
    assert teacher.opened.model.mean.item() == 0.75


def test_runs_on_images_of_several_sizes_are_asked_about(digits):
    def net(size):
        opened = checkpoint.Opened(
            models.build("resnet8-x0.1", 10, [0], [1]), "best", record=dict(data="digits", size=size)
        )
        return lineup.Network(f"a{size}", "a", opened)

    for sizes in ((8, 16), (16, 8)):
        students = [net(size) for size in sizes]
        with pytest.raises(UsageError, match=f"different sizes: {sizes[0]}, {sizes[1]}"):
            lineup.load(None, students, net(8), None, None)
        assert lineup.load(None, students, net(8), None, 12).test.images.shape[-1] == 12
    assert lineup.load(None, [net(16)], net(8), None, None).test.images.shape[-1] == 16
