"""A directory has one owner at a time."""

import threading
from contextlib import ExitStack

import pytest

from gacd.errors import Locked
from gacd.locks import owned


def test_one_owner(tmp_path):
    for _ in range(2):  # leaving gives it back
        with (
            owned(tmp_path / "run"),
            owned(tmp_path / "run", ".other"),
            pytest.raises(Locked, match="another process"),
            owned(tmp_path / "run"),
        ):
            pass


def test_an_owner_is_waited_for(tmp_path):
    held = ExitStack()
    held.enter_context(owned(tmp_path))
    with pytest.raises(Locked), owned(tmp_path, wait=0.2):
        pass
    threading.Timer(0.3, held.close).start()
    with owned(tmp_path, wait=60), pytest.raises(Locked), owned(tmp_path):
        pass
