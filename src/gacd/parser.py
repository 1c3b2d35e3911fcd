"""A command's parser, filled from the signature and the docstring of what it calls."""

import argparse
import difflib
import inspect
import itertools
import re
import types
import typing
from collections.abc import Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from gacd.errors import UsageError

CONFIGS = Path(__file__).parent / "configs"
PUBLISHED = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
METAVARS = {bool: "{true,false}", int: "INT", float: "NUMBER", str: "TEXT"}


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

        register_type(Ratio, serializer=written, deserializer=Ratio, fail_already_registered=False)
        text = description.split("Args:")[0].strip()
        self.parser = jsonargparse.ArgumentParser(
            prog=prog,
            description=text,
            exit_on_error=False,
            allow_abbrev=False,
            print_config="--print_config",
            formatter_class=Help,
        )
        if configs:
            text = f"a YAML file of options, such as a run's, or a published recipe: {', '.join(PUBLISHED)}"
            self.parser.add_argument("--config", action=jsonargparse.ActionConfigFile, help=text)
        self.groups: dict[str, list[str]] = {}

    def add(self, function: Callable, group: str = "", skip: Collection[str] = ()) -> None:
        """Adds a function's arguments: keyword-only ones as options, others that are str as positionals."""
        from docstring_parser import parse

        help_of = {p.arg_name: p.description for p in parse(inspect.getdoc(function) or "").params}
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
        target = self.parser.add_argument_group(group) if group else self.parser
        self.groups.setdefault(group, [])
        for name, parameter in inspect.signature(function).parameters.items():
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            if name in skip or (positional and hints.get(name) not in (str, list[str])):
                continue
            if name not in hints:
                raise UsageError("an option needs a type", f"{function.__qualname__}: {name}", "such as float")
            if any(name in names for names in self.groups.values()) or name in ("config", "help", "print_config"):
                raise UsageError("two options have one name", f"{self.parser.prog}: {name}", "rename the method's")
            required = parameter.default is parameter.empty
            text = " ".join((help_of.get(name) or "").split()).replace("%", "%%")
            options: dict[str, Any] = dict(type=_type(hints[name]), help=text)
            if positional:
                options |= dict(nargs="+") if hints[name] == list[str] else {}
                options["type"] = str
                target.add_argument(name, **options)
            else:
                if item := _item(hints[name]):
                    options |= dict(nargs="+", type=item)
                default = {} if required else dict(default=_default(parameter.default))
                options["help"] += " (required)" if required else _said(parameter.default)
                options |= _metavar(hints[name])
                if hints[name] is bool:  # --half is --half true
                    options |= dict(nargs="?", const=True)
                target.add_argument("--" + name.replace("_", "-"), dest=name, required=required, **default, **options)
            self.groups[group].append(name)

    def read(self, argv: list[str]) -> dict[str, Any]:
        """Values by name; --help and --print_config print and exit 0."""
        needed = [action for action in self.parser._actions if action.required]
        words = [
            " ".join([*a.option_strings, str(a.metavar)] if a.option_strings else [a.dest.upper()]) for a in needed
        ]
        self.parser.usage = " ".join([self.parser.prog, *words, "[options]"])
        try:
            values = self.parser.parse_args(self.words(argv))
        except (argparse.ArgumentError, TypeError, ValueError) as error:
            raise self._plainly(" ".join(str(error).split()), argv) from None
        return {name: _bare(values[name]) for names in self.groups.values() for name in names}

    def words(self, argv: list[str]) -> list[str]:
        """What was typed as the parser takes it."""
        words = [self._configured(word, before) for before, word in zip(["", *argv], argv, strict=False)]
        words = [self._dashed(word) for word in words]
        for action in self.parser._actions:
            if action.nargs == "+" and sum(word.partition("=")[0] in action.option_strings for word in words) > 1:
                raise UsageError("given twice", action.option_strings[0], "all its values after one")
        return words

    def _plainly(self, said: str, argv: list[str]) -> UsageError:
        """The parsers' errors in the words of the command line."""
        known, see = self.parser._option_string_actions, f"see {self.parser.prog} --help"
        words = [part for word in argv for part in (word.split("=", 1) if word.startswith("--config=") else [word])]
        file = next((value for word, value in itertools.pairwise(words) if word == "--config"), "")
        told = "Got value|Given value|string to float|division by zero"
        if found := re.match(rf'Parser key "(\w+)"(?: element \d+)?: .*(?:{told}): (.*)', said):
            option = "--" + found[1].replace("_", "-")
            choices = re.search(r"Literal\[(.*?)\]", said)
            takes = choices[1].replace("'", "") if choices else getattr(known.get(option), "metavar", None)
            place = "" if any(word.partition("=")[0].replace("_", "-") == option for word in argv) else file
            given = found[2].strip("'")[:100]
            return UsageError(f"{option} takes {takes or 'another value'}, not {given}", place, see)
        if found := re.match(r"unrecognized arguments: (\S+)|Option '(\S+)' is not accepted", said):
            if found[1] and not found[1].startswith("-"):
                return UsageError("one argument too many", found[1], see)
            name, place = (found[1], "") if found[1] else ("--" + found[2].replace("_", "-"), file)
            near = difflib.get_close_matches(name, known, 1)
            fix = "it is for another method" if place in PUBLISHED else f"did you mean {near[0]}?" if near else see
            return UsageError(f"no such option: {name}", place, fix)
        return UsageError(said.replace('"<unicode string>"', file)[:400], "", see)

    def _configured(self, word: str, before: str) -> str:
        """After --config: the path of a published recipe's name, or the options of a run's config.yaml; else as it is.

        Raises:
            UsageError: no such recipe, or a run's of another method.
        """
        option, equals, given = word.partition("=") if word.startswith("--config=") else ("", "", word)
        if "--config" not in self.parser._option_string_actions or (before != "--config" and not option):
            return word
        if given in PUBLISHED:
            return option + equals + str(CONFIGS / f"{given}.yaml")
        path = Path(given)
        if re.fullmatch(r"[\w-]+", given) and given != "-" and not path.exists():
            raise UsageError("no such recipe or file", f"--config {given}", f"one of {', '.join(PUBLISHED)}")
        options = None
        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):  # which the parser says better
            options = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
        if not isinstance(options, dict) or "method" not in options:
            return word
        method, own = self.parser.prog.split()[-1], str(options.pop("method"))
        if own != method and own.isidentifier() and method.isidentifier():
            raise UsageError(f"a run of {own}, not of {method}", f"--config {given}")
        return option + equals + yaml.safe_dump({name: value for name, value in options.items() if value is not None})

    def _dashed(self, word: str) -> str:
        """--data_dir, as it is called in YAML and Python, is --data-dir, and --audit is --audits."""
        name, equals, value = word.partition("=")
        known, dashed = self.parser._option_string_actions, name.replace("_", "-")
        dashed = "--audits" if dashed == "--audit" else dashed
        return dashed + equals + value if name not in known and dashed in known else word


class Help(argparse.HelpFormatter):
    """An option with its value, what it is and its default; a list's values are VALUE ..."""

    def __init__(self, prog: str, **options: Any):
        super().__init__(prog, **options | dict(max_help_position=27))

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == "+":
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)


def _metavar(hint: Any) -> dict[str, str]:
    """What stands for an option's value; argparse and jsonargparse name the choices themselves."""
    kinds = [hint, *typing.get_args(hint), *(kind for part in typing.get_args(hint) for kind in typing.get_args(part))]
    return next((dict(metavar=METAVARS[kind]) for kind in kinds if kind in METAVARS), {})


def _said(default: Any) -> str:
    """A default, behind an option's help."""
    if default is None:
        return ""
    words = default if isinstance(default, list | tuple) else [default]
    shown = (str(_default(word)).lower() if isinstance(word, bool) else str(_default(word)) for word in words)
    return f" (default: {' '.join(shown)})"


def _type(hint: Any) -> Any:
    """A hint with Ratio in the place of float."""
    if hint is float:
        return Ratio
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return typing.Union[tuple(_type(a) for a in typing.get_args(hint))]  # noqa: UP007
    return hint


def _item(hint: Any) -> Any:
    """Of a list, or of a list or None, what it holds; None of anything else."""
    lists = (kind for kind in (hint, *typing.get_args(hint)) if typing.get_origin(kind) is list)
    return next((_type(typing.get_args(kind)[0]) for kind in lists), None)


def _default(value: Any) -> Any:
    if isinstance(value, float):
        return Ratio(value)
    return [_default(v) for v in value] if isinstance(value, tuple | list) else value


def _bare(value: Any) -> Any:
    """Floats in the place of Ratios: what ends in a checkpoint must be of types that torch loads safely."""
    if isinstance(value, list):
        return [_bare(v) for v in value]
    return float(value) if isinstance(value, Ratio) else value


class Ratio(float):
    """A float that may be written, and is shown, as "8/255"."""

    def __new__(cls, value: float | str) -> "Ratio":
        if isinstance(value, str) and value.count("/") == 1:
            try:
                over, under = map(float, value.split("/"))
            except ValueError:  # which names a part of it
                raise ValueError(f"could not convert string to float: {value!r}") from None
            if under == 0:
                raise ValueError(f"division by zero: {value}")
            return super().__new__(cls, over / under)
        return super().__new__(cls, value)

    def __str__(self) -> str:
        levels = self * 255
        grey = 0 < levels < 255 and abs(levels - round(levels)) < 1e-9 and len(repr(float(self))) > 8
        return f"{round(levels)}/255" if grey else f"{float(self):g}"

    __repr__ = __str__


def exact(number: float) -> str:
    """A number as it is shown, "8/255", if that is read as the same number, else all its digits."""
    return text if float(Ratio(text := str(Ratio(number)))) == number else repr(float(number))


def written(value: Ratio) -> str | float:
    """As YAML keeps it."""
    return text if "/" in (text := str(value)) else float(value)


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Options as YAML keeps them: "8/255" for such a float, strings for paths."""

    def one(value: Any) -> Any:
        if isinstance(value, float):
            return written(Ratio(value))
        if isinstance(value, tuple | list):
            return [one(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    return {name: one(value) for name, value in values.items()}
