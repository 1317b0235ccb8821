"""Who trains a run: one process at a time, known by name, with a lock that a killed owner cannot leave behind."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

LOCK, OWNER = ".lock", ".owner"


class OwnerError(RuntimeError):
    """A run's folder cannot be held: one line that says by whom it is, or why it cannot be written."""


class Locked(OwnerError):
    """Another process trains this run."""


@contextlib.contextmanager
def own(folder: Path) -> Iterator[None]:
    """Holds a run's folder against other processes while the block runs. Raises Locked or OwnerError before it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / LOCK)
        lock.acquire(timeout=0)
        (folder / OWNER).write_text(f"pid {os.getpid()} on {socket.gethostname()}")
    except filelock.Timeout:
        raise Locked(f"{folder.name}: locked by {_name(folder)}; wait for it or stop it") from None
    except OSError as error:
        raise OwnerError(f"{folder}: {error.strerror}; nothing was trained") from None
    with lock:
        yield


def holder(folder: Path) -> str | None:
    """The process that holds a run's folder at this moment, or None."""
    if not (folder / LOCK).exists():
        return None
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            return None
    except filelock.Timeout:
        return _name(folder)


def _name(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / OWNER).read_text() or "another process"
    return "another process"
