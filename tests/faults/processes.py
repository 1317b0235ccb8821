"""Real processes for tests: a run that is trained in several, and groups of them that end together."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

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
            "logits": np.load(self.folder / records.ARRAYS)["logits"].tobytes(),
            "history": history,
            **{name: record[name] for name in ("test_acc", "test_loss", "last_test_acc", "selected_epoch")},
        }

    def left_over(self) -> set[str]:
        """Files that a finished run should not keep."""
        kept = {records.RESULT, records.ARRAYS, records.WEIGHTS, ".lock", ".claim", ".owner"}
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
