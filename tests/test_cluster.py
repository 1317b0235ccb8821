"""What is handed to SLURM and how its queue is read, with its programs stubbed; tests/slurm has a real one."""

import dataclasses
import subprocess
from types import SimpleNamespace

import pytest

import made
from lib import records
from lib.data.download import DataError
from lib.runs import all_runs, cluster

RUNS = ["k3-p1-seed0", "k5-p1-seed0", "k7-p1-seed0", "k9-p1-seed0"]


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A study of four runs in a folder with a hard name, the data at hand, and no variable set."""
    made.place(monkeypatch, tmp_path / "it's | here")
    monkeypatch.setattr(cluster.datasets, "load", lambda p: made.DATA)
    for name in (*cluster.OPTIONS, "SBATCH_PARTITION"):
        monkeypatch.delenv(name, raising=False)
    return made.study(settings=[f"kernel-{kernel}" for kernel in (3, 5, 7, 9)])


@pytest.fixture
def slurm(monkeypatch):
    """SLURM's programs: what each answers, and what each was asked."""

    class Slurm:
        def __init__(self):
            self.answers = {"sinfo": "cpu*|(null)|64\nbig|gpu:a100:4|128\n", "squeue": "", "sbatch": "7;north\n"}
            self.asked, self.script = {}, ""

        def __call__(self, program, *options, script=""):
            self.asked[program], self.script = options, script
            return self.answers[program]

    monkeypatch.setattr(cluster.shutil, "which", lambda program: f"/usr/bin/{program}")
    monkeypatch.setattr(cluster, "slurm", slurm := Slurm())
    return slurm


def test_without_slurm_one_line_says_what_to_do_instead(study, monkeypatch, capsys):
    monkeypatch.setattr(cluster.shutil, "which", lambda program: None)
    assert all_runs.main([study.name, "--submit"]) == 1
    assert capsys.readouterr().err == "no SLURM here (sbatch); `make runs STUDY=made` trains on this machine\n"
    assert "queue" not in all_runs.status(study)


def test_what_is_finished_refused_queued_or_held_is_not_submitted(study, slurm, monkeypatch, capsys):
    finished, refused, queued, left = study.runs
    made.write(study, finished, made.record(finished))
    made.write(study, refused, made.record(refused) | {"fingerprint": "0" * 16})
    slurm.answers["squeue"] = f"3|1|RUNNING|None|{cluster.mark(study, [finished, queued])}\n"
    assert all_runs.main([study.name, "--submit"]) == 1  # as there is a refused one
    out, err = capsys.readouterr()
    assert out == f"made: job 7 trains {left.name}\nmade: 1 runs submitted, 1 under way before, 1 finished\n"
    assert err.count("\n") == 1 and "made with other parameters" in err
    assert f"runs=({left.name})\n" in slurm.script and "--array=0-0" in slurm.asked["sbatch"]
    slurm.asked.clear()
    monkeypatch.setattr(cluster, "holder", lambda folder: "pid 1 on a laptop" if folder.name == left.name else None)
    all_runs.main([study.name, "--submit"])
    assert "0 runs submitted, 2 under way before, 1 finished" in capsys.readouterr().out
    assert "sbatch" not in slurm.asked


def test_without_data_nothing_is_submitted(study, slurm, monkeypatch, capsys):
    def unreachable(p):
        raise DataError("could not get CIFAR-10")

    monkeypatch.setattr(cluster.datasets, "load", unreachable)
    assert all_runs.main([study.name, "--submit"]) == 1
    assert capsys.readouterr().err == "could not get CIFAR-10\n" and "sbatch" not in slurm.asked


@pytest.mark.parametrize(
    "variables, wanted",
    [
        ({}, {"--cpus-per-task=4"}),
        ({"CPUS": "2", "TIME": "1:00:00", "ACCOUNT": "lab"}, {"--cpus-per-task=2", "--time=1:00:00", "--account=lab"}),
        ({"GPUS": "a100:1"}, {"--cpus-per-task=4", "--gres=gpu:a100:1"}),
    ],
)
def test_a_variable_is_an_option_and_where_there_is_none_the_default_partition_decides(
    study, slurm, monkeypatch, variables, wanted
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert all_runs.main([study.name, "--submit"]) == 0
    ours = tuple(option.partition("=")[0] for option in cluster.OPTIONS.values())
    assert {option for option in slurm.asked["sbatch"] if option.startswith(ours)} == wanted


@pytest.mark.parametrize(
    "nodes, wanted",
    [
        ("big|gpu:a100:4|128\nbig|(null)|2+\n", {"CPUS": "4", "GPUS": "1"}),
        ("big*|(null)|2+\n", {"CPUS": "2"}),
        ("", {"CPUS": "1"}),
    ],
)
@pytest.mark.parametrize("name", ["PARTITION", "SBATCH_PARTITION"])
def test_in_a_partition_with_gpus_a_task_has_one(slurm, monkeypatch, name, nodes, wanted):
    monkeypatch.delenv("PARTITION", raising=False)
    monkeypatch.setenv(name, "big")
    slurm.answers["sinfo"] = nodes
    assert cluster.defaults() == wanted
    assert "--partition=big" in slurm.asked["sinfo"]


def test_a_task_runs_its_run_and_writes_beside_it_whatever_the_folder_is_called(study, slurm, monkeypatch, tmp_path):
    """The script as a node has it, with a Python that only says what it is given."""
    python = tmp_path / "bin dir" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\necho "$PYTHONPATH, $OMP_NUM_THREADS threads: $*"; exit 3\n')
    python.chmod(0o755)
    monkeypatch.setattr(cluster.sys, "executable", str(python))
    assert all_runs.main([study.name, "--submit"]) == 0
    given = {"PATH": "/usr/bin:/bin", "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7", "SLURM_CPUS_ON_NODE": "5"}
    for _ in range(2):
        done = subprocess.run(["bash"], input=slurm.script, text=True, env=given, cwd="/", capture_output=True)
        assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    log = (made.folder_of(study, study.runs[2]) / cluster.LOG).read_text().splitlines()
    assert log[1] == log[3] == f"{cluster.ROOT}, 5 threads: -m lib.runs made --run k7-p1-seed0"
    assert ": task 7_2 on " in log[0] and len(log) == 4


def test_on_a_folder_that_has_changed_nothing_is_submitted(study, slurm, monkeypatch, capsys):
    made.fill(study, skip={study.runs[1].name})
    monkeypatch.setattr(cluster.datasets, "load", lambda p: SimpleNamespace(digest="of now"))
    assert all_runs.main([study.name, "--submit"]) == 1
    assert "holds other images than" in capsys.readouterr().err
    assert "sbatch" not in slurm.asked


def test_a_comment_that_slurm_would_refuse_is_of_several_arrays(study, slurm):
    study = made.study("many", seeds=range(40))
    arrays = list(cluster.parts(study, list(study.runs)))
    assert [run for part in arrays for run in part] == list(study.runs) and 1 < len(arrays) < len(study.runs) / 5
    assert all(len(cluster.mark(study, part).encode()) <= cluster.COMMENT for part in arrays)


def test_what_is_queued_is_not_trained_here_but_by_its_task(study, slurm, monkeypatch, capsys):
    trained = []
    monkeypatch.setattr(all_runs, "train_all", lambda study, jobs: trained.append(len(study.runs)) or 0)
    slurm.answers["squeue"] = f"3|0|RUNNING|None|{cluster.mark(study, study.runs)}\n"
    assert all_runs.main([study.name]) == 1 and not trained
    assert capsys.readouterr().err == "made: 1 runs are in SLURM's queue, so nothing is trained here\n"
    assert all_runs.main([study.name, "--run", study.runs[0].name]) == 0 and trained == [1]
    slurm.answers["squeue"] = ""
    assert all_runs.main([study.name]) == 0 and trained == [1, 4]


def test_status_shows_the_queue_and_where_the_log_of_a_task_is_that_left_nothing(study, slurm):
    mark = cluster.mark(study, study.runs)
    other = cluster.mark(dataclasses.replace(study, name="made2"), study.runs)
    slurm.answers["squeue"] = (
        f"3|1|RUNNING|None|{mark}\n3|3|PENDING|Priority|{mark}\n4|0|RUNNING|None|{other}\n5|N/A|RUNNING|None|(null)\n"
    )
    for run in study.runs[1:3]:
        made.folder_of(study, run).mkdir(parents=True)
        (made.folder_of(study, run) / cluster.LOG).write_text("today: task 3_2 on node\nno python here\n")
    lines = all_runs.status(study).splitlines()
    assert [line.split()[-2:] for line in lines[:5]] == [
        ["time", "queue"], ["-", "-"], ["3_1", "running"], ["-", "-"], ["pending", "(Priority)"],
    ]  # fmt: skip
    log = "reports/made/runs/k7-p1-seed0/slurm.log"
    assert lines[5] == f"k7-p1-seed0: its task ended without a record; {log}: no python here" and len(lines) == 7


def test_the_last_line_of_what_slurm_says_against_it_is_shown(study, monkeypatch, tmp_path):
    for name, does in {"sbatch": "exit 0", "squeue": 'echo first >&2; echo "squeue: error: down" >&2; exit 1'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert all_runs.status(study).splitlines()[-2] == "squeue: error: down"
    (tmp_path / "squeue").write_text(
        '#!/bin/sh\necho "squeue: fatal: Could not establish a configuration source" >&2; exit 1\n'
    )
    assert "squeue" not in all_runs.status(study)  # its programs are installed, and there is no cluster
    assert not records.study_folder(study.name).exists()
