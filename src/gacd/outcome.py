"""What an evaluation prints at its end, and the exit code that its audits lead to."""

from typing import Any

from rich.console import Console
from rich.table import Table

from gacd import results
from gacd.audit import Audit, Finding
from gacd.audits.case import CROSS_ENTROPY
from gacd.errors import Invalid, Suspect
from gacd.parser import Ratio
from gacd.tables import clean


def show(rows: list[dict[str, Any]], seconds: dict[str, float], say: Console) -> None:
    """Prints entries of results.json, the seconds of those attacks that were timed, and what is to be known of them."""
    if not rows:
        return
    say.print(_table(rows, seconds))
    attacks = {row["attack"] for row in rows} - {"natural", "worst"}
    if "pgd20" in attacks:
        say.print("pgd20 is the paper's metric; worst counts, per image, every attack above.")
    if all(map(CROSS_ENTROPY.fullmatch, attacks)):
        say.print("every attack here follows cross-entropy: margin20 beside it may find more; --audits full looks")
    for row in rows:
        if blind := [doubt for doubt in row.get("doubts", []) if results.BLIND in doubt]:
            say.print(f"{row['attack']} at eps {row['eps']} is SUSPECT: {blind[0]}", markup=False)


def compare(rows: list[dict[str, Any]], audit: Audit) -> None:
    """Adds to the audit, if it passed, that the lowest of the entries is SUSPECT beside evaluations before it."""
    attacked = [row for row in rows if "verdict" in row]
    worst = min(attacked, key=lambda row: row["correct"], default={})
    if worst.get("verdict") == "SUSPECT" and not audit.exit_code:
        audit.findings.append(Finding(results.BLIND, "suspect", f"{worst['attack']} is in doubt", "the worst counts"))


def conclude(found: list[Audit], eps: list[float], say: Console, audits: str) -> None:
    """Prints what audits found at some radii; raises what is not trusted."""
    worst = max(found, key=lambda result: result.exit_code)
    skipped = [[finding.name for finding in result.findings if finding.outcome == "skipped"] for result in found]
    always = [name for name in skipped[0] if all(name in names for names in skipped)]
    left = list(always)
    for radius, result, names in zip(eps, found, skipped, strict=True):
        at = f" at eps {Ratio(radius)}" if len(eps) > 1 else ""
        for finding in result.troubles:
            say.print(clean(f"{finding}{at}"), markup=False)
        left += [name + at for name in names if name not in always]
    passed = sum(finding.outcome == "passed" for finding in worst.findings)
    if worst.exit_code == 0:
        also = f"; skipped: {', '.join(left)}" if left else ""
        say.print(f"TRUSTED: {passed} {audits} audits passed{also} ({worst.seconds:.0f} s)", markup=False)
        return
    why = ", ".join(finding.name for finding in worst.troubles)
    if worst.exit_code == 3:
        raise Suspect("SUSPECT, an unverified upper bound on robustness", why, "see above")
    raise Invalid("INVALID, no robust accuracy is given", why, "see above")


def _table(rows: list[dict[str, Any]], seconds: dict[str, float]) -> Table:
    table = Table("attack", "norm", "eps", "step", "accuracy", "95 % interval", "n", "seconds")
    for column in table.columns:
        column.overflow = "fold"  # a number cut off is another number
    for row in rows:
        low, high = row["interval"]
        shown = [row["attack"], row.get("norm", "")]
        shown += [str(Ratio(row[name])) if name in row else "" for name in ("eps", "step_size")]
        taken = f"{seconds[row['attack']]:.1f}" if row["attack"] in seconds else ""
        table.add_row(*shown, f"{row['accuracy']:.2%}", f"{low:.1%}-{high:.1%}", str(row["n"]), taken)
    return table
