"""Bugs that people make, put into the attack code one at a time: does a test notice?

    python tests/mutants.py [--only WORD] [--jobs N]

Each mutant is applied to a copy of the package, and the tests that should catch it run on that copy: the named ones
first, then all of their files. Exit code 1 where a mutant survives. The tests must pass on the unchanged copy first.
"""

import argparse
import importlib
import io
import json
import multiprocessing
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 120  # of one run of tests; a mutant that takes longer hangs, and is caught


class Mutant(NamedTuple):
    file: str  # of src/gacd/attacks/
    old: str
    new: str
    tests: list[str]


def mutants() -> list[Mutant]:
    """All of them: from tests/mutated/, a file of them for each file of attacks/.

    A paragraph is a mutant, the old code after "- " and the new after "+ ", to the letter; "tests:" are those that
    should catch the ones below.
    """
    found, tests = [], []
    for path in sorted((ROOT / "tests/mutated").glob("*.txt")):
        for paragraph in path.read_text().strip("\n").split("\n\n"):
            lines = paragraph.split("\n")
            if lines[0].startswith("tests: "):
                tests = lines[0].split()[1:]
                continue
            old, new = ("\n".join(line[2:] for line in lines if line[0] == sign) for sign in "-+")
            found.append(Mutant(f"{path.stem}.py", old, new, tests))
    return found


def apply(mutant: Mutant, package: Path) -> int:
    """Changes the copy of src/gacd; the number of the line. ValueError where the old code is not there exactly once."""
    path = package / "attacks" / mutant.file
    text = path.read_text()
    if text.count(mutant.old) != 1:
        raise ValueError(f"{mutant.file}: {text.count(mutant.old)} times, not once: {mutant.old!r}")
    path.write_text(text.replace(mutant.old, mutant.new))
    return text[: text.index(mutant.old)].count("\n") + 1


def run_tests(source: Path, tests: list[str]) -> str | None:
    """pytest on these tests with the gacd of a folder: None if all pass, else what failed first."""
    receive, send = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_pytest, args=(source, tests, send))
    process.start()
    send.close()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        return f"time: more than {SECONDS} s"
    try:
        return receive.recv()
    except EOFError:
        return f"a crash, {process.exitcode}"


def _pytest(source: Path, tests: list[str], send) -> None:
    import pytest

    os.chdir(ROOT)
    os.environ["PYTHONPATH"] = str(source)
    sys.path.insert(0, str(source))
    assert Path(importlib.import_module("gacd").__file__).is_relative_to(source)
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out):
        code = pytest.main(["-x", "-q", "-n", "0", "-p", "no:cacheprovider", *(f"tests/{test}" for test in tests)])
    failed = re.search(r"^(?:FAILED|ERROR) tests/(\S+)", out.getvalue(), re.M)
    send.send(None if code == 0 else failed[1] if failed else f"pytest: exit code {int(code)}")


def judge(mutant: Mutant) -> tuple[bool, str]:
    """Whether it is caught, and the line to print."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "src"
        shutil.copytree(ROOT / "src", source)
        try:
            line = apply(mutant, source / "gacd")
        except ValueError as error:
            return False, f"DID NOT APPLY  {error}"
        files = sorted({test.split("::")[0] for test in mutant.tests})
        caught = run_tests(source, mutant.tests)
        if caught is None and files != sorted(mutant.tests):
            caught = run_tests(source, files)
            caught = caught and f"{caught} (not the test named)"
    verdict = f"caught by {caught}" if caught else "SURVIVED"
    return bool(caught), f"{mutant.file}:{line}  {mutant.old!r} -> {mutant.new!r}  {verdict}"


def preload() -> None:
    """Imports once what the tests import, but not the package itself, so that a fork starts at once."""
    sys.path.insert(0, str(ROOT / "src"))
    for name in ("gacd.evaluation", "gacd.models", "pytest", "scipy.optimize", "numpy"):
        importlib.import_module(name)
    del sys.path[0]
    for name in [name for name in sys.modules if name.split(".")[0] == "gacd"]:
        del sys.modules[name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", metavar="WORD", help="mutants whose file, code or tests contain it")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="so many at a time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="where the count is written, as JSON")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    began = time.perf_counter()
    chosen = [mutant for mutant in mutants() if options.only in " ".join([*mutant[:3], *mutant.tests])]
    preload()
    failed = run_tests(ROOT / "src", sorted({test for mutant in chosen for test in mutant.tests}))
    if failed:
        print(f"without a mutant: {failed}")
        return 1
    caught = 0
    with ThreadPoolExecutor(options.jobs) as pool:
        for noticed, line in pool.map(judge, chosen):
            print(line, flush=True)
            caught += noticed
    used = sum(os.times()[:4])  # of the forks too
    seconds = f"{time.perf_counter() - began:.0f} s, {used:.0f} s of one core"
    print(f"{caught} of {len(chosen)} mutants caught in {seconds}")
    if options.out:
        from gacd.results import provenance

        command = shlex.join(["python", "tests/mutants.py", *sys.argv[1:]])
        found = dict(mutants=len(chosen), caught=caught, command=command, **provenance())
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    return 0 if caught == len(chosen) else 1


if __name__ == "__main__":
    sys.exit(main())
