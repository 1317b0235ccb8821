"""Who trains a run: one process at a time, known by name, with a lock that a killed owner cannot leave behind."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

LOCK, OWNER = ".lock", ".owner"
# Seconds for an owner to go: a kernel lives on for a moment when its papermill has been killed, and who only looks
# whether a run is held holds it for that time.
PATIENCE = 4


class OwnerError(RuntimeError):
    """A run's folder cannot be held: one line that says by whom it is, or why it cannot be written."""


class Locked(OwnerError):
    """Another process trains this run."""


@contextlib.contextmanager
def own(folder: Path) -> Iterator[None]:
    """Holds a run's folder against other processes while the block runs. Raises Locked or OwnerError before it."""
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(filelock.FileLock(folder / LOCK, timeout=PATIENCE))
            (folder / OWNER).write_text(f"pid {os.getpid()} on {socket.gethostname()}")
        except filelock.Timeout:
            raise Locked(f"{folder.name}: locked by {_name(folder)}; wait for it or stop it") from None
        except OSError as error:
            raise OwnerError(f"{folder}: {error.strerror}; nothing was trained") from None
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
    except OSError:  # a folder where nobody can hold anything
        return None


def _name(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / OWNER).read_text() or "another process"
    return "another process"
