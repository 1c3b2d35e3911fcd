"""Defensive distillation is blind to cross-entropy, not robust; the default command says so."""

from defensive import distilled, evaluated


def test_a_defensively_distilled_network(tmp_path, capsys):
    found = evaluated(distilled(tmp_path / "run"))
    assert "pgd20 is the paper's metric" in capsys.readouterr().out
    assert found["natural"] > 0.9
    assert found["pgd20"] > 0.3
    assert found["margin20"] == found["worst"] < 0.05
