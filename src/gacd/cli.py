"""The command line, read from signatures and docstrings: one parser, for the command and the method in argv."""

import difflib
import importlib
import inspect
import os
import sys
import tempfile
import textwrap
import traceback
from collections.abc import Callable, Iterable

from gacd import methods, typed
from gacd.errors import GacdError, UsageError
from gacd.parser import Parser

COMMANDS = {
    "train": "train a network: adversarially, or as a standard one; --init fine-tunes",
    "distill": "distil a teacher's robustness into a student",
    "probe": "fit a linear classifier on a run's frozen features, on its own data or on other",
    "evaluate": "natural and robust accuracy of a run or of someone else's weights, audited",
    "verify": "re-score an evaluation's adversarial images, from its witness pack alone",
    "analyze": "what students took over from their teacher: correlations, clusters, information, errors",
    "report": "one page and tables from a folder of runs",
    "reproduce": "a table or figure of the paper: its recipe, what is missing run, beside the paper's numbers",
    "export": "a network as one file to ship: its weights, or ONNX",
    "demo": "all of it on small images, in about a minute",
    "download": "fetch a data set, md5 checked",
    "check": "run the contract tests on a method of your own",
}

HOMES = {"demo": "demo", "report": "report", "analyze": "analysis", "reproduce": "reproduce", "probe": "transfer"}
HOMES |= {"evaluate": "assess", "verify": "verify", "download": "readers"}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code of docs/trust.md. Errors are one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        if "" not in sys.path and os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())  # where typed factories and methods may lie; last: it hides nothing installed
        dispatch(argv)
        return 0
    except GacdError as error:
        return _fail(str(error), error.exit_code)
    except KeyboardInterrupt:
        return _fail("interrupted", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  so that the interpreter's last flush has somewhere to go
        return 141
    except OSError as error:
        return _fail(f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), 1)
    except Exception as error:
        whose = "the GPU's " * (type(error).__name__ == "OutOfMemoryError")  # torch's, not imported for --help
        if whose or isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return _fail(f"{whose}memory is full: gacd {argv[0]} (a lower --chunk or --batch-size)", 1)
        with tempfile.NamedTemporaryFile("w", prefix="gacd-", suffix=".txt", delete=False) as file:
            file.write(" ".join(["gacd", *argv]) + "\n" + traceback.format_exc())
        if where := typed.blamed(error):
            tries = "".join(f"; gacd check {word} tries it" for word in typed.methods[-1:])
            return _fail(f"{where} (its traceback is in {file.name}{tries})", 1)
        own = "".join(f", unless gacd check {word} finds one there" for word in typed.methods[-1:])
        return _fail(f"a bug in gacd{own}; its traceback is in {file.name}: please report it", 70)
    finally:
        _leave_group()


def dispatch(argv: list[str]) -> None:
    """Finds the command, builds its parser, calls it."""
    if not argv or argv[0] in ("-h", "--help"):
        print(_overview())
        return
    if argv[0] in ("-V", "--version"):
        from importlib.metadata import version

        print("gacd", version("gacd"))
        return
    command, *rest = argv
    if command not in COMMANDS:
        raise UsageError("unknown command", command, _hint(command, COMMANDS))
    if command in ("train", "distill"):
        _train(command, rest)
        return
    function, parser = command_parser(command)
    function(**parser.read(rest))


def _train(command: str, argv: list[str]) -> None:
    listed = methods.names(teacher=command == "distill")
    if not argv or argv[0] in ("-h", "--help"):
        lines = _lines(listed | {"./mine.py": "your own"})
        print(f"usage: gacd {command} METHOD --out RUN [options]\n\nmethods:\n{lines}\n")
        print(f"gacd {command} METHOD --help lists a method's options.")
        return
    name, *rest = argv
    if name.startswith("-"):
        raise UsageError(f"gacd {command} needs a method first", name, "one of " + ", ".join(listed))
    built_in = name in methods.names()  # is answered without importing torch
    if not (name in listed if built_in else methods.taught(methods.load(name)) == (command == "distill")):
        other, why = ("train", "has no") if command == "distill" else ("distill", "needs a")
        raise UsageError(f"{name} {why} teacher", f"gacd {command} {name}", f"gacd {other} {name}")
    from gacd import commands
    from gacd.checkpoint import is_factory

    parser = training_parser(command, name)
    values = parser.read(rest)
    for option in ("teacher", "init"):
        source = values.get(option) or ""
        if is_factory(source) and not any(word in (source, f"--{option}={source}") for word in rest):
            raise UsageError("a factory must be typed on the command line", f"{option}: {source}", "not in a file")
    pick = {group: {n: values[n] for n in parser.groups[group] if n in values} for group in parser.groups}
    commands.train(name, method_options=pick["method"], fit_options=pick["training"], **pick["run"])


def command_parser(command: str) -> tuple[Callable[..., None], Parser]:
    """What a command calls, and its parser: any but train and distill."""
    home = HOMES.get(command, "commands")
    function = getattr(importlib.import_module(f"gacd.{home}"), command)
    parser = Parser(f"gacd {command}", COMMANDS[command])
    parser.add(function)
    return function, parser


def training_parser(command: str, method: str) -> Parser:
    """That of `gacd train METHOD` or `gacd distill METHOD`."""
    from gacd import commands
    from gacd.training import fit

    cls = methods.load(method)
    parser = Parser(f"gacd {command} {method}", inspect.getdoc(cls) or "", configs=True)
    parser.add(cls, group="method")
    skip = {"method", "method_options", "fit_options", *(["teacher"] if command == "train" else [])}
    parser.add(commands.train, group="run", skip=skip)
    parser.add(fit, group="training")
    return parser


def _overview() -> str:
    lines = _lines(COMMANDS)
    return f"usage: gacd COMMAND ...\n\nDistil adversarial robustness.\n\n{lines}\n\ngacd COMMAND --help says more."


def _lines(texts: dict[str, str]) -> str:
    """Names and what they are, for a terminal of 80 columns."""
    rows = [textwrap.wrap(t, 79, initial_indent=f"  {n:11}", subsequent_indent=13 * " ") for n, t in texts.items()]
    return "\n".join(line for row in rows for line in row)


def _hint(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]}?" if near else "one of " + ", ".join(known)


def _fail(line: str, code: int) -> int:
    words = " ".join(line.split())  # names in foreign files come this way too
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in words)
    print("gacd: error:", shown, file=sys.stderr)
    return code


def _leave_group() -> None:
    """Ends the process group of a distributed run, if there is one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
