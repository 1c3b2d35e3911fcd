"""The methods. The directory is the list: a file here is a method, a command and a row of the contract tests."""

import ast
import difflib
import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from gacd.errors import InputError, UsageError
from gacd.typed import imported

if TYPE_CHECKING:
    from gacd.methods.base import Method

HERE = Path(__file__).parent


def names(teacher: bool | None = None) -> dict[str, str]:
    """Name -> first line of the docstring, read without importing; `teacher` keeps those with or without one."""
    found = {}
    for path in sorted(HERE.glob("[a-z]*.py")):
        if path.stem == "base":
            continue
        tree = _parse(path)
        takes = _takes_teacher(tree)
        if teacher is None or teacher == takes:
            found[path.stem] = (ast.get_docstring(tree) or "").partition("\n")[0]
    return found


def load(method: str) -> "type[Method]":
    """The class of a method: its name, "./mine.py", "./mine.py:Class" or "package.module:Class".

    Code named by path is run, so it must come from a person, never from a file.
    """
    if method in names():
        return _only_class(importlib.import_module(f"gacd.methods.{method}"), "", method)
    place, _, name = method.rpartition(":") if ":" in method else (method, "", "")
    if place.endswith(".py") or name:
        return _only_class(imported(place, "method", method), name, place)
    near = difflib.get_close_matches(method, names(), 1)
    hint = f"did you mean {near[0]}?" if near else "one of " + ", ".join(names()) + ", or ./FILE.py"
    raise UsageError("unknown method", method, hint)


def taught(cls: "type[Method]") -> bool:
    """Whether a method learns from a teacher."""
    return "teacher" in inspect.signature(cls).parameters


def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _takes_teacher(tree: ast.Module) -> bool:
    """Whether the method's __init__, its own or that of the method it builds on, has a parameter `teacher`."""
    nodes = list(ast.walk(tree))
    inits = [node for node in nodes if isinstance(node, ast.FunctionDef) and node.name == "__init__"]
    if inits:
        return any(argument.arg == "teacher" for init in inits for argument in init.args.args)
    hosts = [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    paths = [HERE / f"{host.removeprefix('gacd.methods.')}.py" for host in hosts if host.startswith("gacd.methods.")]
    return any(_takes_teacher(_parse(path)) for path in paths if path.is_file())


def _only_class(module: ModuleType, name: str, place: str) -> "type[Method]":
    from gacd.methods.base import Method

    classes = [
        c
        for c in vars(module).values()
        if inspect.isclass(c)
        and issubclass(c, Method)
        and (c.__name__ == name or (not name and c.__module__ == module.__name__))
    ]
    if len(classes) != 1:
        raise InputError(f"expected one subclass of gacd.methods.base.Method, found {len(classes)}", place)
    return classes[0]


def __getattr__(name: str) -> "type[Method]":
    """`gacd.methods.ARD`: the class of the file ard.py, imported when asked for."""
    if not name.startswith("_") and name.lower() in names():
        return load(name.lower())
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
