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
places: dict[str, str] = {}  # of what was imported: its folder -> how it was typed


def imported(place: str, what: str) -> ModuleType:
    """Runs a file, or imports a module. The place must come from a person, never from a file.

    A file finds its neighbours; but what is installed, or lies where the command was typed, comes before them.

    Args:
        place: "./mine.py" or "package.module".
        what: it is to be, for an error.
    """
    try:
        if not place.endswith(".py"):
            module = importlib.import_module(place)
            places[os.path.dirname(os.path.realpath(module.__file__ or ""))] = place
            return module
        if not Path(place).is_file():
            raise InputError(f"no such {what} file", place)
        folder = Path(place).resolve().parent
        _check_neighbours(folder)
        places[str(folder)] = place
        if str(folder) not in sys.path:
            sys.path.append(str(folder))
        number = hashlib.sha256(str(Path(place).resolve()).encode()).hexdigest()[:8]  # files may have one name
        spec = importlib.util.spec_from_file_location(f"gacd_typed_{Path(place).stem}_{number}", place)
        assert spec is not None and spec.loader is not None  # None is for suffixes that are not Python's
        module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
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
    below = any(str(folder) in places for folder in file.parents)
    return below and HERE not in file.parents and "site-packages" not in file.parts


def _check_neighbours(folder: Path) -> None:
    """Refuses a folder with a module of the name of one that another typed file's folder has given."""
    for file in folder.glob("*.py"):
        known = getattr(sys.modules.get(file.stem), "__file__", None)
        if known and (other := Path(known).resolve()) != file and str(other.parent) in places:
            raise InputError("two typed files have neighbours of one name", f"{other} and {file}", "rename one")
