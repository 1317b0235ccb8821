"""Checkpoints: atomic, checked, one previous kept, never executed.

A file is a line that names the format, the SHA-256 of what follows, and a torch.save of plain values and tensors.
"""

import hashlib
import io
import sys
from pathlib import Path

import torch

from lib.files import write_bytes
from lib.params import UserError
from lib.records import CHECKPOINT, RESULT

PREVIOUS = "checkpoint.previous.pt"
DAMAGED = "checkpoint.damaged.pt"  # a last one that is: it must not become the previous one, which is all that is left
FORMAT = b"convmixer-cifar10 checkpoint 1\n"


class CheckpointError(UserError):
    """A checkpoint that cannot be used; names the file."""


def save(folder: Path, state: dict) -> int:
    """Writes `state` (tensors, numbers, text, lists and dicts of them) and returns its size in bytes.

    The last checkpoint becomes the previous one.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getbuffer()
    content = b"".join([FORMAT, hashlib.sha256(body).digest(), body])
    write_bytes(folder / CHECKPOINT, content, keep=folder / PREVIOUS)
    return len(content)


def load(folder: Path) -> dict | None:
    """The newest checkpoint that is whole, or None where a run has none.

    A damaged last one is said on stderr and the previous one is taken. CheckpointError if there are files and none
    can be used: training from the start again is the user's decision.
    """
    failures = []
    for path in (folder / CHECKPOINT, folder / PREVIOUS):
        if path.exists():
            try:
                state = _read(path)
            except CheckpointError as error:
                failures.append(str(error))
                continue
            if failures:
                print(f"{failures[0]}; going on from the one before", file=sys.stderr, flush=True)
                (folder / CHECKPOINT).replace(folder / DAMAGED)
            return state
    if failures:
        raise CheckpointError("; ".join(failures) + f"; to start this run anew, delete {folder}/checkpoint*.pt")
    return None


def remove(folder: Path) -> None:
    """Deletes the checkpoints of a run's finished training, none that a later one (with force) has made since."""
    finished = (folder / RESULT).stat().st_mtime_ns
    for path in (folder / CHECKPOINT, folder / PREVIOUS, folder / DAMAGED):
        if path.exists() and path.stat().st_mtime_ns <= finished:
            path.unlink()


def _read(path: Path) -> dict:
    content = path.read_bytes()
    head = len(FORMAT)
    if not content.startswith(FORMAT):
        raise CheckpointError(f"{path} is not a checkpoint of this format")
    digest, body = content[head : head + 32], content[head + 32 :]
    if hashlib.sha256(body).digest() != digest:
        raise CheckpointError(f"{path} is damaged (checksum)")
    try:
        # weights_only: a pickle that would run code is refused, also one with a right checksum.
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path} is refused ({str(error).splitlines()[0]})") from None
