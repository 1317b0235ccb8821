"""What the slow tests share: what a test has seen, runs in several processes, small disks."""

import functools
import os
import subprocess
from pathlib import Path

import pytest
from processes import Attempts


@pytest.fixture
def seen(record_property):
    """Notes in a few words what a test has seen, for the line of its fault (or of one of its faults)."""
    return lambda text, fault=None: record_property("seen", (fault, text))


@pytest.fixture
def attempts(tmp_path):
    """Makes runs, each under its own folder."""
    return lambda name="run", **params: Attempts(tmp_path / name, **params)


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """The outcome of the run of attempts that nothing disturbs, by dtype."""

    @functools.cache
    def outcome(dtype: str = "float32") -> dict:
        run = Attempts(tmp_path_factory.mktemp("whole"), dtype=dtype)
        assert run(["end"])[0]["status"] == 0
        return run.outcome()

    return outcome


@pytest.fixture
def disk(tmp_path):
    """Makes small disks (tmpfs), given in MB; needs root, and is skipped without."""
    mounted = []

    def make(megabytes: int, name: str = "disk") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
        if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("mounting a small disk needs root")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def read_only(disk):
    """Makes a mounted disk read-only (root may write in any folder that is merely without the permission)."""

    def freeze(folder: Path, frozen: bool = True) -> None:
        subprocess.run(["mount", "-o", f"remount,{'ro' if frozen else 'rw'}", str(folder)], check=True)

    return freeze
