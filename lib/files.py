"""Files that are there whole or not at all, and locks, on whatever disk: network mounts, shared folders, FAT."""

import contextlib
import errno
import os
import sys
import tempfile
from pathlib import Path

import filelock

PART = ".part"  # the end of a temporary file's name
# What a mount answers that has no such operation (FUSE, virtiofs, shared folders of virtual machines, CIFS, FAT).
UNSUPPORTED = {getattr(errno, name) for name in ("EINVAL", "ENOSYS", "ENOTSUP", "EOPNOTSUPP", "ENOTTY")}


def write_bytes(path: Path, content: bytes, keep: Path | None = None) -> None:
    """Writes a file whole or not at all: a temporary beside it, flushed to the disk, renamed over it.

    With `keep` the file that stood there before stays under that name.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in UNSUPPORTED:
                    raise
        with contextlib.suppress(OSError):  # a mount without permissions
            os.chmod(temporary, 0o644)
        if keep and path.exists():
            move_over(path, keep)
        move_over(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    # The rename itself should survive a power cut. The file is in place, so where a folder cannot be flushed, or not
    # even opened, that is all that is lost.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def move_over(source: str | Path, target: Path) -> None:
    """Renames over what stands there, also where the mount renames to free names only (sshfs, some shared folders)."""
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno not in {errno.EEXIST, errno.EPERM, errno.EACCES, *UNSUPPORTED} or not target.exists():
            raise
        os.unlink(target)
        os.replace(source, target)


def lock(path: Path, patience: float = -1) -> contextlib.AbstractContextManager:
    """A file's lock, waited for `patience` seconds (negative: forever); none, and a line, on a disk without locks."""
    try:
        return filelock.FileLock(path, timeout=patience).acquire()
    except OSError as error:
        if error.errno not in {errno.ENOLCK, *UNSUPPORTED}:
            raise
        print(f"{path.parent}: no locks on this disk; start nothing twice at a time", file=sys.stderr, flush=True)
        return contextlib.nullcontext()


def remove_parts(folder: Path) -> None:
    """Removes what killed writers have left in a run's folder; only for its owner, who is then the one writer."""
    for path in folder.glob(f".*{PART}"):
        path.unlink(missing_ok=True)
