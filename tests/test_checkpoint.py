"""Checkpoints: atomic, one previous kept, damage noticed, nothing executed."""

import errno
import hashlib
import io
import os
import pickle

import pytest
import torch

from lib import checkpoint, files, records
from lib.checkpoint import FORMAT, CheckpointError, load, save

STATE = {"model": {"w": torch.arange(6.0)}, "epoch": 3, "history": [{"loss": 0.1, "val_acc": None}], "best": None}


def other(epoch):
    return {**STATE, "epoch": epoch}


def test_what_was_saved_is_loaded(tmp_path):
    save(tmp_path, STATE)
    state = load(tmp_path)
    assert torch.equal(state.pop("model")["w"], STATE["model"]["w"])
    assert state == {name: value for name, value in STATE.items() if name != "model"}


def test_no_checkpoint_is_none(tmp_path):
    assert load(tmp_path) is None


def damage_truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


def damage_garbage(path):
    path.write_bytes(b"\0" * 500)


def damage_empty(path):
    path.write_bytes(b"")


def damage_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = [damage_truncate, damage_garbage, damage_empty, damage_one_bit]


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_one_is_said_and_the_previous_taken(tmp_path, capsys, damage):
    save(tmp_path, other(1))
    save(tmp_path, other(2))
    damage(tmp_path / records.CHECKPOINT)
    assert load(tmp_path)["epoch"] == 1
    assert "going on from the one before" in capsys.readouterr().err


@pytest.mark.parametrize("damage", DAMAGE)
def test_both_damaged_stops(tmp_path, damage):
    save(tmp_path, other(1))
    save(tmp_path, other(2))
    damage(tmp_path / records.CHECKPOINT)
    damage(tmp_path / checkpoint.PREVIOUS)
    with pytest.raises(CheckpointError, match="to start this run anew, delete"):
        load(tmp_path)


def test_a_last_one_lost_between_two_renames_leaves_the_previous(tmp_path):
    save(tmp_path, other(1))
    (tmp_path / records.CHECKPOINT).rename(tmp_path / checkpoint.PREVIOUS)
    assert load(tmp_path)["epoch"] == 1


class Malicious:
    """Writes a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path):
    trap = tmp_path / "executed"
    pickle.loads(pickle.dumps(Malicious(trap)))
    assert trap.exists()  # the trap works
    trap.rmdir()
    buffer = io.BytesIO()
    torch.save({"model": Malicious(trap)}, buffer)
    body = buffer.getvalue()
    (tmp_path / records.CHECKPOINT).write_bytes(FORMAT + hashlib.sha256(body).digest() + body)
    with pytest.raises(CheckpointError, match="is refused"):
        load(tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_save_that_breaks_off_leaves_what_there_was(tmp_path, monkeypatch, call):
    save(tmp_path, other(1))
    save(tmp_path, other(2))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, call, full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, other(3))
    monkeypatch.undo()
    assert load(tmp_path)["epoch"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.previous.pt", "checkpoint.pt"]


def test_only_two_are_kept_and_a_record_ends_them_but_none_that_came_after_it(tmp_path):
    for epoch in range(4):
        save(tmp_path, other(epoch))
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / records.RESULT).touch()
    checkpoint.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [records.RESULT]
    os.utime(tmp_path / records.RESULT, (1, 1))
    save(tmp_path, other(4))
    checkpoint.remove(tmp_path)
    assert load(tmp_path)["epoch"] == 4


# ------------------------------------------------------------------------------------------------ poor disks


def is_folder(descriptor):
    return os.path.isdir(f"/proc/self/fd/{descriptor}")


def refuse(monkeypatch, name, number, when=lambda *arguments: True):
    """os.NAME answers with an error, as some mounts do, and counts how often."""
    function, asked = getattr(os, name), []

    def refused(*arguments, **named):
        if when(*arguments):
            asked.append(arguments)
            raise OSError(number, os.strerror(number))
        return function(*arguments, **named)

    monkeypatch.setattr(os, name, refused)
    return asked


def saves(folder):
    """Whether three saves leave the last two, and nothing else."""
    for epoch in (1, 2, 3):
        save(folder, other(epoch))
    held = [checkpoint._read(path)["epoch"] for path in (folder / records.CHECKPOINT, folder / checkpoint.PREVIOUS)]
    return held == [3, 2] and len(list(folder.iterdir())) == 2


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EIO, errno.EACCES, errno.EBADF])
def test_a_folder_that_cannot_be_flushed_or_opened_stops_nothing(tmp_path, monkeypatch, number):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    asked = refuse(monkeypatch, "fsync", number, is_folder)
    assert saves(tmp_path / "a") and len(asked) == 3
    asked = refuse(monkeypatch, "open", number, lambda path, *_: os.path.isdir(path))
    assert saves(tmp_path / "b") and len(asked) == 3


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_disk_that_flushes_nothing_and_has_no_permissions_stops_nothing(tmp_path, monkeypatch, number):
    asked = refuse(monkeypatch, "fsync", number)
    asked_too = refuse(monkeypatch, "chmod", errno.EPERM)
    assert saves(tmp_path) and len(asked) == 6 and len(asked_too) == 3


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_a_file_that_does_not_reach_the_disk_is_an_error_and_the_last_one_stays(tmp_path, monkeypatch, number):
    save(tmp_path, other(1))
    refuse(monkeypatch, "fsync", number, lambda descriptor: not is_folder(descriptor))
    with pytest.raises(OSError, match=os.strerror(number)):
        save(tmp_path, other(2))
    assert load(tmp_path)["epoch"] == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EPERM, errno.EACCES, errno.EINVAL])
def test_a_disk_that_renames_to_free_names_only_stops_nothing(tmp_path, monkeypatch, number):
    asked = refuse(monkeypatch, "replace", number, lambda source, target: os.path.exists(target))
    assert saves(tmp_path) and len(asked) == 1


def test_a_rename_that_fails_for_another_reason_takes_nothing_away(tmp_path, monkeypatch):
    files.write_bytes(tmp_path / "file", b"old")
    refuse(monkeypatch, "replace", errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        files.write_bytes(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_a_damaged_last_one_never_becomes_the_previous_one(tmp_path):
    for epoch in (1, 2):
        checkpoint.save(tmp_path, {"epoch": epoch})
    (tmp_path / records.CHECKPOINT).write_bytes(b"torn")
    assert checkpoint.load(tmp_path)["epoch"] == 1
    checkpoint.save(tmp_path, {"epoch": 3})
    (tmp_path / records.CHECKPOINT).write_bytes(b"torn again")
    assert checkpoint.load(tmp_path)["epoch"] == 1  # or nothing would be left
    (tmp_path / records.RESULT).touch()
    checkpoint.remove(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [records.RESULT]


def test_what_is_flushed_is_the_whole_file_and_everybody_may_read_it(tmp_path, monkeypatch):
    sizes, fsync = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (sizes.append(os.fstat(descriptor).st_size), fsync(descriptor)))
    files.write_bytes(tmp_path / "a", b"abc")
    assert sizes[0] == 3 and (tmp_path / "a").stat().st_mode & 0o777 == 0o644
