"""One owner a run: the second is told who has it, and a killed one leaves no lock."""

import errno
import fcntl
import subprocess
import sys

import pytest

from lib.runs import lock
from lib.runs.lock import OwnerError, claim, holder, own

HOLD = """
import sys, time
from pathlib import Path
from lib.runs.lock import own

with own(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    return process


def test_the_second_is_told_who_holds_the_run_and_a_killed_owner_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    folder = tmp_path / "k9-p1-seed0"
    process = hold(folder)
    with pytest.raises(OwnerError, match=rf"k9-p1-seed0: locked by pid {process.pid} on ") as refusal, own(folder):
        pass
    assert "\n" not in str(refusal.value)
    assert holder(folder).startswith(f"pid {process.pid} on ")
    process.kill()
    process.wait()
    assert holder(folder) is None
    with own(folder):
        pass


def test_a_claimed_run_is_left_to_who_claimed_it_and_its_kernel_may_own_it(tmp_path):
    with claim(tmp_path) as ours:
        assert ours and holder(tmp_path).startswith("pid ")
        with claim(tmp_path) as second:
            assert not second
        with own(tmp_path):  # the kernel that was started under the claim
            pass
    assert holder(tmp_path) is None
    with claim(tmp_path) as again:
        assert again


def test_the_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(KeyError), own(tmp_path):
        raise KeyError
    with own(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OwnerError, match="nothing was trained"), own(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_disk_without_locks_is_said_and_trains(tmp_path, monkeypatch, capsys, number):
    def no_locks(*_):
        raise OSError(number, "no such thing here")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with claim(tmp_path) as ours, own(tmp_path):
        assert ours
    assert holder(tmp_path) is None
    said = capsys.readouterr().err
    # filelock itself knows another way where the system has no such call at all.
    assert said == (
        "" if number == errno.ENOSYS else f"{tmp_path}: no locks on this disk; start nothing twice at a time\n"
    )


def test_a_lock_that_fails_for_another_reason_is_an_error(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", broken)
    with pytest.raises(OwnerError, match="Input/output error; nothing was trained"), own(tmp_path):
        pass
