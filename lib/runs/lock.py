"""Who trains a run: one process at a time, known by name, with a lock that a killed owner cannot leave behind."""

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from lib.files import lock
from lib.params import UserError

LOCK, CLAIM, OWNER = ".lock", ".claim", ".owner"
# Seconds for an owner to go: a kernel lives on for a moment when its papermill has been killed, and who only looks
# whether a run is held holds it for that time.
PATIENCE = 4


class OwnerError(UserError):
    """A run's folder cannot be held: says by whom it is, or why it cannot be written."""


@contextlib.contextmanager
def own(folder: Path) -> Iterator[None]:
    """Holds a run's folder against other processes while the block runs.

    OwnerError before it, where another process trains the run or nothing can be written.
    """
    with contextlib.ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(folder / LOCK, PATIENCE))
            _sign(folder)
        except filelock.Timeout:
            raise OwnerError(f"{folder.name}: locked by {_name(folder)}; wait for it or stop it") from None
        except OSError as error:
            raise OwnerError(f"{folder}: {error.strerror}; nothing was trained") from None
        yield


@contextlib.contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Whether the run is this process's to start, and if so keeps others from starting it while the block runs.

    A kernel takes seconds to start, and only then owns its run. Without a claim two `make runs` would start the same
    run, one of them in vain, and again the next. The folder must exist.
    """
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(filelock.FileLock(folder / CLAIM, timeout=1))  # who only looks holds it for a moment
            _sign(folder)
        except filelock.Timeout:
            yield False
            return
        except OSError:  # a folder where nobody can hold anything; the run itself says so
            pass
        yield True


def holder(folder: Path) -> str | None:
    """The process that holds or has claimed a run's folder at this moment, or None."""
    for name in (LOCK, CLAIM):
        if (folder / name).exists():
            try:
                with filelock.FileLock(folder / name, timeout=0):
                    pass
            except filelock.Timeout:
                return _name(folder)
            except OSError:  # a folder where nobody can hold anything
                return None
    return None


def _sign(folder: Path) -> None:
    (folder / OWNER).write_text(f"pid {os.getpid()} on {socket.gethostname()}")


def _name(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return (folder / OWNER).read_text() or "another process"
    return "another process"
