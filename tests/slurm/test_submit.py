"""`make submit` and `make status` on a real SLURM: an array, a task that is taken away, one that fails."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import one_machine
import pytest
import yaml
from one_machine import until

from copy_of import Copy
from lib.study import ROOT

pytestmark = pytest.mark.timeout(1800)  # real trainings on two cores, perhaps beside other work
PATIENCE = 900
RUNS = ["k3-p1-seed0", "k9-p1-seed0", "k9-p4-seed0", "k7-p4-lr0.001-seed0"]  # of smoke, in its order
TIMING = ("seconds", "images_per_second")


class Cluster(Copy):
    """A copy of the repository beside a SLURM; a task takes one core of its two."""

    def __init__(self, root: Path, environment: dict):
        super().__init__(root)
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy2(ROOT / name, root)
        self.environment |= environment | {"CONVMIXER_VENV": sys.prefix, "CPUS": "1"}

    def make(self, *words: str) -> subprocess.CompletedProcess:
        """What make does here, with the packages of this Python."""
        command = ["make", "--no-print-directory", f"--old-file={sys.prefix}/.ready", *words]
        return subprocess.run(command, cwd=self.root, env=self.environment, capture_output=True, text=True)

    def ask(self, *command: str) -> str:
        """What a program of SLURM prints."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    def study(self, name: str, *settings: str | dict, **values) -> None:
        """Writes a study's file: a tiny network, a checkpoint after every step."""
        tiny = {"dim": 8, "depth": 1, "lr": 0.01, "train_size": 640, "val_size": 200, "checkpoint_minutes": 1e-9}
        text = yaml.safe_dump({"study": name, "settings": list(settings), **tiny, **values})
        (self.root / "params" / "studies" / f"{name}.yaml").write_text(f"# Made for a test.\n{text}")

    def folder(self, study: str, run: str) -> Path:
        """Of a run."""
        return self.root / "reports" / study / "runs" / run

    def table(self, study: str) -> dict[str, list[str]]:
        """The rows of `make status`, in words, by their runs."""
        lines = self.make("status", f"STUDY={study}").stdout.splitlines()
        return {line.split()[0]: line.split()[1:] for line in lines[1:-1]}

    def wait(self) -> None:
        """Until nothing is queued or runs."""
        until(lambda: not self.ask("squeue", "--noheader"), PATIENCE)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster of one machine."""
    with one_machine.slurm() as environment:
        yield Cluster(tmp_path_factory.mktemp("shared disk"), environment)


def test_a_study_is_one_array_in_its_order_submitted_once_and_reported_from_what_it_left(cluster):
    submitted = cluster.make("submit", "STUDY=smoke", "PARTITION=other", "TIME=60")
    assert submitted.returncode == 0, submitted.stderr
    first, last = submitted.stdout.splitlines()[-2:]
    job = first.split()[2]
    assert first == f"smoke: job {job} trains {', '.join(RUNS)}"
    assert last == "smoke: 4 runs submitted, 0 under way before, 0 finished"
    shown = cluster.table("smoke")
    assert list(shown) == RUNS
    for number, words in enumerate(shown.values()):
        assert f"{job}_{number}" in words and {"pending", "running"} & set(words)
    again = cluster.make("submit", "STUDY=smoke")
    assert again.stdout.splitlines()[-1] == "smoke: 0 runs submitted, 4 under way before, 0 finished"
    described = cluster.ask("scontrol", "show", "job", job)
    assert described.count("Partition=other") == described.count("TimeLimit=01:00:00") >= 1
    assert described.count("Requeue=1") == described.count("TresPerNode=gres:gpu:1") >= 1  # as there are some
    assert cluster.make("report", "STUDY=smoke").stderr.startswith("smoke: 4 runs are in SLURM's queue, so nothing is ")
    page = cluster.root / "reports/smoke/index.html"
    before = page.read_bytes()
    cluster.wait()
    assert {run: words[0] for run, words in cluster.table("smoke").items()} == dict.fromkeys(RUNS, "done")
    for number, run in enumerate(RUNS):
        log = (cluster.folder("smoke", run) / "slurm.log").read_text()
        assert f": task {job}_{number} on " in log and f"{run}  done: " in log
        record = json.loads((cluster.folder("smoke", run) / "result.json").read_text())
        assert record["environment"]["threads"] == 1  # its share, not the machine's cores
    again = cluster.make("submit", "STUDY=smoke")
    assert again.stdout == "smoke: 0 runs submitted, 0 under way before, 4 finished\n" and again.returncode == 0
    assert cluster.make("report", "STUDY=smoke").returncode == 0
    assert page.read_bytes() != before


def outcome(folder: Path) -> dict:
    """All that must be the same to the bit: everything but timing."""
    record = json.loads((folder / "result.json").read_text())
    history = [{name: value for name, value in epoch.items() if name not in TIMING} for epoch in record["history"]]
    numbers = [record[name] for name in ("fingerprint", "test_acc", "test_loss", "last_test_acc", "selected_epoch")]
    return {"history": history, "numbers": numbers, "weights": (folder / "weights.safetensors").read_bytes()}


def test_a_task_that_is_taken_away_in_mid_run_ends_with_the_record_of_an_undisturbed_one(cluster):
    for study in ("taken", "left"):
        cluster.study(study, "kernel-9", epochs=12)
        assert cluster.make("submit", f"STUDY={study}").returncode == 0
    taken, left = (cluster.folder(study, "k9-p1-seed0") for study in ("taken", "left"))
    until(lambda: (taken / "progress.json").exists(), PATIENCE)
    *_, task, state = cluster.table("taken")["k9-p1-seed0"]
    assert state == "running"
    cluster.ask("scontrol", "requeue", task)
    until(lambda: "(BeginTime)" in cluster.table("taken")["k9-p1-seed0"], 60)
    assert cluster.table("taken")["k9-p1-seed0"][0] == "unfinished"  # not failed
    assert 1 <= len(json.loads((taken / "progress.json").read_text())["history"]) < 12
    cluster.ask("scontrol", "update", f"JobId={task}", "StartTime=now")  # SLURM itself waits two minutes
    cluster.wait()
    assert (taken / "slurm.log").read_text().count(f": task {task} on ") == 2
    assert (left / "slurm.log").read_text().count(": task ") == 1
    assert [json.loads((folder / "result.json").read_text())["resumed"] for folder in (taken, left)] == [1, 0]
    assert outcome(taken) == outcome(left)


def test_a_task_that_fails_is_shown_as_failed_and_the_others_go_on(cluster):
    cluster.study("failing", "kernel-3", {"kernel-5": {"lr": 1e30}}, epochs=3)
    job = cluster.make("submit", "STUDY=failing").stdout.split("job ")[1].split()[0]
    cluster.wait()
    states = [cluster.ask("scontrol", "show", "job", f"{job}_{task}") for task in (0, 1)]
    assert "JobState=COMPLETED" in states[0] and "JobState=FAILED" in states[1]
    lines = cluster.make("status", "STUDY=failing").stdout.splitlines()
    assert [line.split()[1] for line in lines[1:3]] == ["done", "failed"]
    assert lines[3].startswith(f"{lines[2].split()[0]}: ") and "became NaN or infinite" in lines[3]
    again = cluster.make("submit", "STUDY=failing")
    assert again.stdout.splitlines()[-1] == "failing: 1 runs submitted, 0 under way before, 1 finished"


def test_what_slurm_refuses_is_said_in_its_own_words(cluster):
    cluster.study("refused", "kernel-3")
    refused = cluster.make("submit", "STUDY=refused", "PARTITION=nowhere")
    assert refused.returncode and "Invalid partition name specified" in refused.stderr.splitlines()[0]
    cluster.environment["SLURM_CONF"], conf = os.devnull, cluster.environment["SLURM_CONF"]
    try:
        shown = cluster.make("status", "STUDY=refused")
        assert shown.returncode == 0 and shown.stdout.splitlines()[-2].startswith("squeue: ")
    finally:
        cluster.environment["SLURM_CONF"] = conf
