"""A directory has one owner at a time."""

import errno
import threading
from contextlib import ExitStack

import pytest

from gacd.errors import InputError, Locked
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


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match=r"its file system has no locks: .*: No locks available"), owned(tmp_path):
        pass


def test_an_owner_is_waited_for(tmp_path):
    held = ExitStack()
    held.enter_context(owned(tmp_path))
    with pytest.raises(Locked), owned(tmp_path, wait=0.2):
        pass
    threading.Timer(0.3, held.close).start()
    with owned(tmp_path, wait=60), pytest.raises(Locked), owned(tmp_path):
        pass
