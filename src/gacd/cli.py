"""The command line, read from signatures and docstrings: one parser, for the command and the method in argv."""

import difflib
import importlib
import inspect
import os
import sys
import tempfile
import textwrap
import traceback
import types
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from gacd import methods
from gacd.errors import GacdError, UsageError

CONFIGS = Path(__file__).parent / "configs"
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
HOMES |= {"evaluate": "assess", "verify": "verify"}


def main(argv: list[str] | None = None) -> int:
    """Runs one command; returns the exit code of docs/trust.md. Errors are one line on stderr."""
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
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
    except Exception:
        with tempfile.NamedTemporaryFile("w", prefix="gacd-", suffix=".txt", delete=False) as file:
            file.write(" ".join(["gacd", *argv]) + "\n" + traceback.format_exc())
        return _fail(f"a bug in gacd; its traceback is in {file.name}: please report it", 70)
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
    home = HOMES.get(command, "commands")
    function = getattr(importlib.import_module(f"gacd.{home}"), command)
    parser = Parser(f"gacd {command}", COMMANDS[command])
    parser.add(function)
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
    if name in methods.names() and name not in listed:
        other, why = ("train", "has no") if command == "distill" else ("distill", "needs a")
        raise UsageError(f"{name} {why} teacher", f"gacd {command} {name}", f"gacd {other} {name}")
    cls = methods.load(name)
    if ("teacher" in inspect.signature(cls.__init__).parameters) != (command == "distill"):
        raise UsageError(f"{name} {'has no' if command == 'distill' else 'needs a'} teacher", f"gacd {command} {name}")
    from gacd import commands
    from gacd.checkpoint import is_factory
    from gacd.training import fit

    parser = Parser(f"gacd {command} {name}", inspect.getdoc(cls) or "", configs=True)
    parser.add(cls, group="method", owner=cls.__init__)
    parser.add(commands.train, group="run", skip={"method", "method_options", "fit_options"})
    if command == "train":
        parser.drop("teacher")
    parser.add(fit, group="training")
    values = parser.read(rest)
    for option in ("teacher", "init"):
        source = values.get(option) or ""
        if is_factory(source) and not any(word in (source, f"--{option}={source}") for word in rest):
            raise UsageError("a factory must be typed on the command line", f"{option}: {source}", "not in a file")
    pick = {group: {n: values[n] for n in parser.groups[group] if n in values} for group in parser.groups}
    commands.train(name, method_options=pick["method"], fit_options=pick["training"], **pick["run"])


class Ratio(float):
    """A float that may be written, and is shown, as "8/255"."""

    def __new__(cls, value: float | str) -> "Ratio":
        if isinstance(value, str) and value.count("/") == 1:
            over, under = map(float, value.split("/"))
            if under == 0:
                raise ValueError(f"division by zero: {value}")
            return super().__new__(cls, over / under)
        return super().__new__(cls, value)

    def __str__(self) -> str:
        levels = self * 255
        grey = 0 < levels < 255 and abs(levels - round(levels)) < 1e-9 and len(repr(float(self))) > 8
        return f"{round(levels)}/255" if grey else f"{float(self):g}"

    __repr__ = __str__


def _written(value: Ratio) -> str | float:
    """As YAML keeps it."""
    return text if "/" in (text := str(value)) else float(value)


class Parser:
    """A jsonargparse parser filled from signatures.

    Args:
        prog: how the command is typed.
        description: above the options in --help.
        configs: whether the command takes --config.
    """

    def __init__(self, prog: str, description: str, configs: bool = False):
        import jsonargparse
        from jsonargparse.typing import register_type

        register_type(Ratio, serializer=_written, deserializer=Ratio, fail_already_registered=False)
        text = description.split("Args:")[0].strip()
        self.parser = jsonargparse.ArgumentParser(
            prog=prog, description=text, exit_on_error=False, allow_abbrev=False, print_config="--print_config"
        )
        if configs:
            recipes = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
            text = f"a YAML file of options, or a published recipe: {recipes}"
            self.parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help=text)
        self.groups: dict[str, list[str]] = {}

    def add(self, function: Callable, group: str = "options", skip: Collection[str] = (), owner: Any = None) -> None:
        """Adds a function's arguments: keyword-only ones as options, others that are str as positionals."""
        from docstring_parser import parse

        help_of = {p.arg_name: p.description for p in parse(inspect.getdoc(function) or "").params}
        hints = typing.get_type_hints(owner or function)
        target = self.parser.add_argument_group(group)
        self.groups.setdefault(group, [])
        for name, parameter in inspect.signature(function).parameters.items():
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if name in skip or (positional and hints.get(name) not in (str, list[str])):
                continue
            required = parameter.default is parameter.empty
            text = " ".join((help_of.get(name) or "").split()).replace("%", "%%")
            options: dict[str, Any] = dict(type=_type(hints[name]), help=text)
            if positional:
                options |= dict(nargs="+") if hints[name] == list[str] else {}
                options["type"] = str
                target.add_argument(name, **options)
            else:
                if any(typing.get_origin(hint) is list for hint in (hints[name], *typing.get_args(hints[name]))):
                    options["nargs"] = "+"
                    options["type"] = _item(hints[name])
                default = {} if required else dict(default=_default(parameter.default))
                target.add_argument("--" + name.replace("_", "-"), dest=name, required=required, **default, **options)
            self.groups[group].append(name)

    def drop(self, name: str) -> None:
        """Takes an option out again."""
        for action in [a for a in self.parser._actions if a.dest == name]:
            self.parser._remove_action(action)
            for option in action.option_strings:
                self.parser._option_string_actions.pop(option, None)
            for group in self.parser._action_groups:
                group._group_actions = [a for a in group._group_actions if a is not action]
        for names in self.groups.values():
            if name in names:
                names.remove(name)

    def read(self, argv: list[str]) -> dict[str, Any]:
        """Values by name; --help and --print_config print and exit 0."""
        from argparse import ArgumentError

        try:
            words = [self._dashed(_recipe(word, before)) for before, word in zip(["", *argv], argv, strict=False)]
            values = self.parser.parse_args(words)
        except (ArgumentError, TypeError, ValueError) as error:
            raise UsageError(" ".join(str(error).split())[:400], "", f"see {self.parser.prog} --help") from None
        return {name: _bare(values[name]) for names in self.groups.values() for name in names}

    def _dashed(self, word: str) -> str:
        """--data_dir, as it is called in YAML and Python, is --data-dir."""
        name, equals, value = word.partition("=")
        known, dashed = self.parser._option_string_actions, name.replace("_", "-")
        return dashed + equals + value if name not in known and dashed in known else word


def _recipe(word: str, before: str) -> str:
    """After --config, the path of a published recipe's name."""
    name = word.removeprefix("--config=") if word.startswith("--config=") else word if before == "--config" else ""
    packaged = CONFIGS / f"{name}.yaml"
    return word.replace(name, str(packaged)) if name.isidentifier() and packaged.is_file() else word


def _type(hint: Any) -> Any:
    """A hint with Ratio in the place of float."""
    if hint is float:
        return Ratio
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.Union[tuple(_type(a) for a in typing.get_args(hint))]  # noqa: UP007
    return hint


def _item(hint: Any) -> Any:
    for candidate in (hint, *typing.get_args(hint)):
        if typing.get_origin(candidate) is list:
            return _type(typing.get_args(candidate)[0])
    return hint


def _default(value: Any) -> Any:
    if isinstance(value, float):
        return Ratio(value)
    return [_default(v) for v in value] if isinstance(value, tuple | list) else value


def _bare(value: Any) -> Any:
    """Floats in the place of Ratios: what ends in a checkpoint must be of types that torch loads safely."""
    if isinstance(value, list):
        return [_bare(v) for v in value]
    return float(value) if isinstance(value, Ratio) else value


def _overview() -> str:
    lines = _lines(COMMANDS)
    return f"usage: gacd COMMAND ...\n\nDistil adversarial robustness.\n\n{lines}\n\ngacd COMMAND --help says more."


def _lines(texts: dict[str, str]) -> str:
    """Names and what they are, for a terminal of 80 columns."""
    rows = [textwrap.wrap(t, 79, initial_indent=f"  {n:11}", subsequent_indent=13 * " ") for n, t in texts.items()]
    return "\n".join(line for row in rows for line in row)


def _hint(word: str, known: typing.Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {near[0]}?" if near else "one of " + ", ".join(known)


def _fail(line: str, code: int) -> int:
    print("gacd: error:", " ".join(line.split()), file=sys.stderr)
    return code


def _leave_group() -> None:
    """Ends the process group of a distributed run, if there is one."""
    distributed = sys.modules.get("torch.distributed")
    if distributed and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Options as YAML keeps them: "8/255" for such a float, strings for paths."""

    def one(value: Any) -> Any:
        if isinstance(value, float):
            return _written(Ratio(value))
        if isinstance(value, tuple | list):
            return [one(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {name: one(value) for name, value in values.items()}
