"""Code named by whoever types a command: a method or a factory in "./mine.py" or in "package.module"."""

import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from gacd.errors import InputError


def imported(place: str, what: str) -> ModuleType:
    """Runs a file, or imports a module. The place must come from a person, never from a file.

    Args:
        place: "./mine.py" or "package.module".
        what: it is to be, for an error.
    """
    try:
        if not place.endswith(".py"):
            return importlib.import_module(place)
        if not Path(place).is_file():
            raise InputError(f"no such {what} file", place)
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
