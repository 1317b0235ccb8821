"""Full and read-only disks, on small mounted ones."""

import os
import subprocess
import sys

import pytest

from lib import checkpoint, records
from lib.data import download

FULL = "No space left on device"


def whole_checkpoints(run) -> list[int]:
    """The step of each checkpoint that there is, damaged or not: reading one that is damaged is an error."""
    paths = (run.folder / records.CHECKPOINT, run.folder / checkpoint.PREVIOUS)
    return [20 * state["epoch"] + state["step"] for state in map(checkpoint._read, filter(os.path.exists, paths))]


@pytest.mark.fault(25, "a disk of 30 MB that fills up at the 7th checkpoint, and at result.json")
@pytest.mark.parametrize("what, n", [("checkpoint.pt", 7), ("result.json", 1)])
def test_a_disk_that_fills_up(attempts, whole, disk, seen, what, n):
    reports = disk(30)
    run = attempts("disk")
    assert run.reports == reports
    (end,) = run(["fill", what, n])
    assert end["status"] == 1
    assert end["says"].startswith("TrainingError: ") and FULL in end["says"] and "\n" not in end["says"]
    assert not (run.folder / records.RESULT).exists()
    steps = whole_checkpoints(run)
    assert steps == ([6, 5] if what == "checkpoint.pt" else [100, 99])
    (again,) = run(["end"])
    assert again["status"] == 1
    assert FULL in again["says"] or "MB free" in again["says"]
    assert whole_checkpoints(run) == steps
    (reports / "ballast").unlink()
    assert run(["end"])[0]["status"] == 0
    assert run.outcome() == whole() and not run.left_over()
    seen(f"at {what}: '{end['says'].split(': ', 2)[-1]}', checkpoints of steps {steps} whole; room made: same bits")


@pytest.mark.fault(26, "a disk of 5 MB; a read-only disk; for a run not yet begun and for one in the middle")
def test_no_room_and_no_permission_are_found_before_training(attempts, disk, read_only, seen):
    disk(5)
    (end,) = attempts("disk")(["end"])
    assert (end["status"], end["steps"]) == (1, 0)
    assert "MB free, 20 MB needed; nothing was trained" in end["says"]
    frozen = disk(30, "frozen")
    run = attempts("frozen")
    run(["steps", 3, 0.5])
    read_only(frozen)
    (begun,), (new,) = run(["end"]), attempts("frozen", seed=7)(["end"])
    read_only(frozen, False)
    for end in (begun, new):
        assert (end["status"], end["steps"]) == (1, 0)
        assert "Read-only file system; nothing was trained" in end["says"] and "\n" not in end["says"]
    assert run(["end"])[0]["status"] == 0
    seen(f"0 steps, '{begun['says'].split(': ', 2)[-1]}'")


@pytest.mark.fault(17, "a read-only data folder, and one of 1 MB (tmpfs)")
@pytest.mark.parametrize("full", [False, True])
def test_a_data_folder_that_cannot_be_written(tmp_path, disk, read_only, seen, full):
    folder = disk(1)
    if not full:
        read_only(folder)
    # From the verified copy, so that it is the disk and not the network that fails.
    code = (
        f"from lib.data import download; download.SOURCES = {{'a': lambda folder: A}}; A = download.cifar10(); {FETCH}"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    line = done.stderr.strip()
    assert line.startswith(f"{folder}: {FULL if full else 'Read-only file system'}; about 400 MB are written there")
    assert not (folder / download.COPY).exists()
    seen(line.removeprefix(f"{folder}: "))


FETCH = """
import sys
try:
    download.cifar10(sys.argv[1])
except download.DataError as error:
    sys.exit(str(error))
"""
