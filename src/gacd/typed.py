"""Code named by whoever types a command: a method or a factory in "./mine.py" or in "package.module"."""

import hashlib
import importlib
import importlib.util
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType

from gacd.errors import InputError

HERE = Path(__file__).parent
INSTALLED = {"site-packages", "dist-packages", f"python{sys.version_info.major}.{sys.version_info.minor}"}
methods: list[str] = []  # as they were typed
_folders: set[Path] = set()  # of all that was


def imported(place: str, what: str, word: str = "") -> ModuleType:
    """Runs a file, or imports a module. The place must come from a person, never from a file.

    A file finds its neighbours; but what is installed, or lies where the command was typed, comes before them.

    Args:
        place: "./mine.py" or "package.module".
        what: it is to be, "method" or "factory".
        word: all that was typed.
    """
    if what == "method":
        methods.append(word or place)
    try:
        if not place.endswith(".py"):
            module = importlib.import_module(place)
            if file := getattr(module, "__file__", None):
                _folders.add(Path(file).resolve().parent)
            return module
        if not Path(place).is_file():
            raise InputError(f"no such {what} file", place)
        folder = Path(place).resolve().parent
        _folders.add(folder)
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        number = hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:8]  # files may have one name
        spec = importlib.util.spec_from_file_location(f"gacd_typed_{Path(place).stem}_{number}", place)
        assert spec is not None and spec.loader is not None  # None is for suffixes that are not Python's
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        _check_neighbours(module, folder)
        return module
    except InputError:
        raise
    except Exception as error:  # whatever someone else's code raises
        raise InputError(f"cannot import {what}", f"{place}: {type(error).__name__}: {error}") from None


def blamed(error: BaseException) -> str | None:
    """Where in typed code, or beside it, an error arose, "mine.py:12: ValueError: ..."; None if none took part."""
    frames = [(Path(f.f_code.co_filename).resolve(), line) for f, line in traceback.walk_tb(error.__traceback__)]
    own = [f"{os.path.relpath(file)}:{line}" for file, line in frames if _typed(file)]
    return f"{own[-1]}: {type(error).__name__}: {error}" if own else None


def _typed(file: Path) -> bool:
    """Whether a file lies where something was typed; what is installed beneath does not."""
    below = not _folders.isdisjoint(file.parents) and HERE not in file.parents
    return below and file.is_file() and INSTALLED.isdisjoint(file.parts)


def _check_neighbours(module: ModuleType, folder: Path) -> None:
    """Refuses a module that was given another typed file's neighbour where it has one of that name."""
    used = {getattr(value, "__module__", None) or getattr(value, "__name__", "") for value in vars(module).values()}
    for name in {str(word).partition(".")[0] for word in used}:
        known = getattr(sys.modules.get(name), "__file__", None)
        own = [file for file in (folder / f"{name}.py", folder / name / "__init__.py") if file.is_file()]
        if known and own and (other := Path(known).resolve()) not in own and _typed(other):
            raise InputError("two typed files have neighbours of one name", f"{other} and {own[0]}", "rename one")
