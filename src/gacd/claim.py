"""What RobustBench asks of whoever claims a place in its leaderboards, filled in as far as a run's files say it."""

from collections.abc import Sequence
from typing import Any

from gacd.parser import Ratio
from gacd.records import Measured, Run
from gacd.sections import Line, Section, percent
from gacd.tables import clean, markdown_text

UNKNOWN = "unknown - fill in"
OFFICIAL = "autoattack"
BOARDS = [("cifar10", "Linf", Ratio("8/255")), ("cifar10", "L2", Ratio(0.5)), ("cifar100", "Linf", Ratio("8/255"))]
ALL = 10_000  # test images of both
HEAD = f"""# Claims for RobustBench

RobustBench takes a new model as an issue of its repository. Below is what its form asks for, from each run's files.
Where these do not say it, there stands "{UNKNOWN}".

## The paper

- **Paper Title**: {UNKNOWN}
- **Paper URL**: {UNKNOWN}
- **Paper authors**: {UNKNOWN}
"""
FOOT = f"""
## The model zoo

- **Add the models to the zoo**: {UNKNOWN}
- **Architectures that RobustBench's code lacks**: {UNKNOWN}
- **License, MIT or another**: {UNKNOWN}
"""


def claims(sections: Sequence[Section]) -> str:
    """The form in Markdown, with a block for every run and data set that it was evaluated on.

    Where AutoAttack was run under threats of RobustBench's, there is a block for each of these instead.
    """
    parts = [(part, run) for section in sections for run in section.runs for part in _claimed(section, run)]
    blocks = [_block(part, line) for part, run in parts if (line := part.line(run))]
    return HEAD + "".join(blocks) + FOOT


def _claimed(section: Section, run: Run) -> list[Section]:
    tried = {(m.data, m.norm, m.eps) for m in section.shown(run) if m.attack == OFFICIAL}
    return [section.at((norm, eps)) for data, norm, eps in BOARDS if (data, norm, eps) in tried] or [section]


def _block(section: Section, line: Line) -> str:
    norm, eps = section.threat or (UNKNOWN, UNKNOWN)
    run, official = line.run, line.attacks.get(OFFICIAL)
    size = f" ({run.parameters:,} parameters)" if run.parameters else ""
    fields = {
        "Architecture": f"{run.model}{size}" if run.model else UNKNOWN,
        "Dataset": section.data,
        "Threat Model": norm,
        "eps": str(eps),
        "Clean accuracy": _share(line.natural) if line.natural else UNKNOWN,
        "Robust accuracy": _share(official) if official else UNKNOWN,
        "Additional data": _additional(run, section.data),
        "Evaluation method": _method(section, line),
        "Checkpoint and code": f"{UNKNOWN}: where they can be fetched. {_weights(run)}",
    }
    asked = "\n".join(f"- **{name}**: {markdown_text(text)}" for name, text in fields.items())
    caveats = "\n".join(f"- {markdown_text(text)}" for text in _caveats(section, line))
    command = f"\nThe run's command:\n\n    {clean(run.command)}\n" if run.command else ""
    title = f"## Model: {markdown_text(run.name)} on {markdown_text(section.data)}"
    return f"\n{title}\n\n{asked}\n" + (f"\nBefore it is sent:\n\n{caveats}\n" if caveats else "") + command


def _method(section: Section, line: Line) -> str:
    tried = ", ".join(name for name in line.attacks if name != OFFICIAL)
    if OFFICIAL in line.attacks:
        return "AutoAttack" + (f"; beside it {tried}" if tried else "")
    return f"{tried or 'no attack'}; {_unclaimed(section, line)}"


def _unclaimed(section: Section, line: Line) -> str:
    """Why a line, of the most images, has no AutoAttack."""
    fewer = [other.n for other in section.lines if other.run is line.run and OFFICIAL in other.attacks]
    return f"AutoAttack was run on {max(fewer)} images only" if fewer else "AutoAttack was not run"


def _caveats(section: Section, line: Line) -> list[str]:
    said = []
    if OFFICIAL not in line.attacks:
        bound = (
            f" {_share(line.worst)} under the attacks that were run is an upper bound, no claim." if line.worst else ""
        )
        said.append(f"{_unclaimed(section, line)}, and RobustBench ranks by it.{bound}")
    elif line.worst and line.worst.accuracy < line.attacks[OFFICIAL].accuracy:
        said.append(f"Other attacks found more than AutoAttack: {_share(line.worst)} withstood all of them.")
    claimed = [m for m in (line.attacks.get(OFFICIAL), line.worst) if m and m.suspect]
    doubts = {str(doubt) for m in claimed for doubt in _doubts(m)}
    said += [f"The robust accuracy is an unverified upper bound, {doubt}." for doubt in sorted(doubts)]
    if section.threat is None or (section.data, *section.threat) not in BOARDS:
        boards = "CIFAR-10 (Linf 8/255, L2 0.5) and CIFAR-100 (Linf 8/255)"
        said.append(f"Of the data sets and threats known here RobustBench ranks only {boards}; this is neither.")
    elif line.n < ALL:
        said.append(f"Only the first {line.n} of {ALL} test images were attacked; RobustBench counts all of them.")
    return said


def _doubts(m: Measured) -> list[Any]:
    doubts = m.row.get("doubts")
    return doubts if isinstance(doubts, list) and doubts else ["no reason"]


def _additional(run: Run, data: str) -> str:
    """Whether training saw other images than the data set's own."""
    if run.options.get("data") != data:
        return UNKNOWN
    sources = [str(run.options[name]) for name in ("teacher", "init") if run.options.get(name)]
    return f"{UNKNOWN}: false if {' and '.join(sources)} had none; the run itself had none" if sources else "false"


def _weights(run: Run) -> str:
    row = run.measured[-1].row
    commit = row.get("commit") or UNKNOWN
    return f"The weights are {row.get('weights')}, SHA-256 {row.get('sha256')}; the code's commit is {commit}."


def _share(m: Measured) -> str:
    return f"{percent(m.accuracy, m.n)} % of {m.n} images"
