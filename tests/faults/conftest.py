"""What the slow tests share: runs in several processes, small disks, and what a test has seen."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest

from lib import records
from lib.params import Params
from lib.study import ROOT

HERE = Path(__file__).resolve().parent
TIMING = ("seconds", "images_per_second")

# Everything random is on, the layers are the native ones, and a checkpoint follows each of an epoch's 20 steps.
RUN = {
    "kernel": 5, "patch": 4, "dim": 16, "depth": 2, "epochs": 5, "train_size": 640, "batch_size": 32, "val_size": 200,
    "lr": 0.02, "checkpoint_minutes": 1e-9, "study": "test",
}  # fmt: skip


@pytest.fixture
def seen(record_property):
    """Notes in a few words what a test has seen, for the line of its fault."""
    return lambda text: record_property("seen", text)


class Attempts:
    """A run whose processes end as they are told to."""

    def __init__(self, reports: Path, **params):
        self.reports, self.params = reports, {**RUN, **params}
        records_folder, records.REPORTS = records.REPORTS, reports
        self.folder = records.run_folder(Params.of(**self.params))
        records.REPORTS = records_folder

    def __call__(self, *ends: list, leave_out: str | None = None, timeout: float = 500) -> list[dict]:
        """What became of a process for each of `ends`, see attempts.py."""
        config = {"params": self.params, "reports": str(self.reports), "ends": ends, "leave_out": leave_out}
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            file.write(json.dumps(config))
            file.flush()
            command = [sys.executable, str(HERE / "attempts.py"), file.name]
            with own_group(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
                out, errors = process.communicate(timeout=timeout)
        assert process.returncode == 0, errors
        return [json.loads(line) for line in out.splitlines()]

    def outcome(self) -> dict:
        """All that must be the same to the bit: everything but timing."""
        record = records.read_result(self.folder / records.RESULT)
        history = [{name: value for name, value in epoch.items() if name not in TIMING} for epoch in record["history"]]
        return {
            "weights": (self.folder / records.WEIGHTS).read_bytes(),
            "predicted": np.load(self.folder / records.PREDICTIONS)["predicted"].tobytes(),
            "history": history,
            **{name: record[name] for name in ("test_acc", "test_loss", "last_test_acc", "selected_epoch")},
        }

    def left_over(self) -> set[str]:
        """Files that a finished run should not keep."""
        kept = {records.RESULT, records.PREDICTIONS, records.WEIGHTS, ".lock", ".owner"}
        return {path.name for path in self.folder.iterdir()} - kept


@contextlib.contextmanager
def own_group(command, **options):
    """A process with a group of its own, which does not outlive the block with any of its members."""
    with subprocess.Popen(command, start_new_session=True, text=True, **options) as process:
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


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
