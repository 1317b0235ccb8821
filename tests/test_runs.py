"""All runs of a study, in real processes: from nothing to the page, again in seconds, shared, and telling the truth."""

import concurrent.futures
import json
import os
import re
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

import made
from copy_of import Copy
from lib import explore, records
from lib import study as studies
from lib.data.download import DataError
from lib.runs import all_runs

pytestmark = pytest.mark.timeout(900)  # whole trainings in real processes, perhaps on a machine that is busy


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy in which the study `smoke` has been trained and reported, with what that showed."""
    copy = Copy(tmp_path_factory.mktemp("runs"))
    copy.trained = copy.run("python", "-m", "lib.runs", "smoke", "--jobs", "2")
    copy.reported = copy.run("python", "-m", "lib.report", "smoke")
    return copy


def results(copy):
    return {path: path.read_bytes() for path in copy.root.glob("reports/smoke/runs/*/result.json")}


def test_it_says_what_it_will_run_shows_progress_and_trains_each_configuration_once(copy):
    assert copy.trained.returncode == 0, copy.trained.stderr
    assert "4 of 4 runs to train, about " in copy.trained.stdout
    assert copy.trained.stdout.count(" on the test set, ") == 4
    assert "epoch 2/2" in copy.trained.stdout and "images/s" in copy.trained.stdout and " left" in copy.trained.stdout
    assert len(results(copy)) == 4
    assert copy.trained.stdout.splitlines()[-1] == "smoke: 4 of 4 runs are finished"


def test_a_second_time_trains_nothing(copy):
    before = results(copy)
    again = copy.run("python", "-m", "lib.runs", "smoke", timeout=60)
    assert again.returncode == 0 and "to train" not in again.stdout
    assert results(copy) == before


def test_the_page_is_there(copy):
    assert copy.reported.returncode == 0, copy.reported.stderr
    page = (copy.root / "reports/smoke/index.html").read_text()
    for run in ("k3-p1-seed0", "k9-p4-seed0"):
        record = json.loads((copy.root / f"reports/smoke/runs/{run}/result.json").read_text())
        assert f"{record['test_acc']:.2f}" in page


@pytest.mark.parametrize("data, pictures", [(True, 8), (False, 6)])
def test_a_trained_network_can_be_explored(copy, tmp_path, monkeypatch, data, pictures):
    """Also without CIFAR-10, as in a fresh clone: what needs it says so and is left out, and nothing is fetched."""
    if not data:
        monkeypatch.setitem(copy.environment, "CONVMIXER_DATA", str(tmp_path))
    words = ("-p", "study", "smoke", "-p", "epochs", "2")
    done = copy.run("papermill", "notebooks/explore.ipynb", "explored.ipynb", *words)
    assert done.returncode == 0, done.stderr
    cells = nbformat.read(copy.root / "explored.ipynb", as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", ()) for output in outputs) == pictures
    said = "".join(output.get("text", "") for output in outputs)
    assert ("CIFAR-10 is not here" in said) == (not data) and not any(tmp_path.iterdir())


def test_a_run_that_is_not_here_is_explored_as_it_was_published(copy, tmp_path, monkeypatch, reports):
    """As in a fresh clone; one's own run comes before it."""
    ours = reports / "smoke" / "runs" / "k3-p1-seed0"
    monkeypatch.setattr(records, "PUBLISHED", tmp_path / "published")
    with pytest.raises(records.RecordError, match="neither here nor published; `make runs STUDY=smoke` trains it"):
        explore.trained("smoke", ours.name)
    shutil.copytree(copy.root / "reports" / "smoke", tmp_path / "published" / "smoke")
    folder, record, _ = explore.trained("smoke", ours.name)
    assert folder == tmp_path / "published" / "smoke" / "runs" / ours.name
    assert set(records.read_arrays(record, folder)) >= {"logits", "labels"}
    shutil.copytree(folder, ours)
    assert explore.trained("smoke", ours.name)[0] == ours
    (ours / records.WEIGHTS).unlink()  # as git has a record of another seed
    assert explore.trained("smoke", ours.name)[0] == folder


def test_the_network_that_the_notebook_opens_with_is_published():
    notebook = nbformat.read(studies.ROOT / "notebooks" / "explore.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    asked = {}
    exec(cell.source, asked)
    assert (records.PUBLISHED / asked["study"] / "runs" / asked["name"] / records.WEIGHTS).exists()


def test_status_is_a_table_of_every_run(copy):
    shown = copy.run("python", "-m", "lib.runs", "smoke", "--status").stdout.splitlines()
    assert shown[0].split() == ["run", "status", "epochs", "test", "accuracy", "time"]
    assert shown[1].split()[:3] == ["k3-p1-seed0", "done", "2/2"] and " %" in shown[1]
    assert shown[-1] == "4 of 4 runs of smoke are finished"
    missing = copy.run("python", "-m", "lib.runs", "quick", "--status").stdout
    assert "missing  0/" in missing and "0 of 27 runs" in missing


def test_a_record_that_was_lost_is_trained_again_to_the_same_numbers(copy):
    """Also the proof that a record says enough: the same seed in another process, bit for bit."""
    path = copy.root / "reports/smoke/runs/k9-p4-seed0/result.json"
    before = json.loads(path.read_text())
    weights = path.with_name(records.WEIGHTS).read_bytes()
    path.unlink()
    assert copy.run("python", "-m", "lib.runs", "smoke", "--jobs", "2").returncode == 0  # as many threads as before
    after = json.loads(path.read_text())
    assert path.with_name(records.WEIGHTS).read_bytes() == weights
    for name in ("test_acc", "test_loss", "last_test_acc", "per_class_acc", "fingerprint"):
        assert before[name] == after[name]
    for old, new in zip(before["history"], after["history"], strict=True):
        assert {**old, "seconds": 0, "images_per_second": 0} == {**new, "seconds": 0, "images_per_second": 0}


def test_two_at_once_share_the_work(copy):
    for path in results(copy):
        path.unlink()
    command = copy.command("python", "-m", "lib.runs", "smoke")
    started = [
        subprocess.Popen(command, cwd=copy.root, env=copy.environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    shown = [process.communicate(timeout=800)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0]
    trained = [text.count("epoch 2/2") for text in shown]
    assert sum(trained) == 4 and all(trained)  # each run once, and neither did all of it


def test_a_run_that_fails_fails_every_time_and_the_others_go_on(copy):
    path = copy.root / "params/studies/smoke.yaml"
    text = path.read_text()
    try:
        # lr-1e-3 is given a rate that no training survives; its name changes with it.
        path.write_text(text.replace("lr-1e-3: {epochs: 2}", "lr-1e-3: {lr: 1.0e+30, epochs: 3}"))
        for _ in range(2):
            failed = copy.run("python", "-m", "lib.runs", "smoke")
            assert failed.returncode == 1
            assert "became NaN or infinite at epoch 1" in failed.stderr
            assert "smoke: 3 of 4 runs are finished" in failed.stdout
        assert copy.run("python", "-m", "lib.report", "smoke").returncode == 0
        assert "became NaN or infinite" in (copy.root / "reports/smoke/index.html").read_text()
    finally:
        path.write_text(text)


def test_one_run_can_be_asked_for_alone(capsys):
    study = all_runs.only(studies.load("smoke"), ["k9-p4-seed0"])
    assert [run.name for run in study.runs] == ["k9-p4-seed0"]
    assert all_runs.main(["smoke", "--run", "k9-p5-seed0"]) == 2
    assert capsys.readouterr().err.startswith("run=k9-p5-seed0: not in smoke, there are k3-p1-seed0, ")


def test_an_unknown_study_is_one_line(capsys):
    assert all_runs.main(["quik"]) == 2
    assert capsys.readouterr().err.startswith("study=quik: no params/studies/quik.yaml, there are ")


def test_without_data_nothing_is_trained_and_what_is_finished_needs_none(monkeypatch, tmp_path, capsys):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3", "kernel-9"])

    def unreachable(p):
        raise DataError("could not get CIFAR-10")

    monkeypatch.setattr(all_runs.datasets, "load", unreachable)
    assert all_runs.main([study.name]) == 1
    assert "could not get CIFAR-10" in capsys.readouterr().err
    made.fill(study)
    assert all_runs.main([study.name]) == 0
    assert "made: 2 of 2 runs are finished" in capsys.readouterr().out


def test_on_a_folder_that_has_changed_nothing_is_trained(monkeypatch, tmp_path, capsys):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3", "kernel-9"], dataset="folder:pets")
    made.fill(study, skip={study.runs[1].name})
    monkeypatch.setattr(all_runs, "announce", lambda *_: pytest.fail("it would be trained"))
    monkeypatch.setattr(all_runs.datasets, "load", lambda p: SimpleNamespace(digest="of now"))
    monkeypatch.setattr(all_runs.cluster, "queue", lambda study: {})  # where SLURM is installed and not running
    assert all_runs.main([study.name]) == 1
    said = capsys.readouterr().err
    assert said.startswith("folder:pets: holds other images than k3-p1-seed0 was trained on (sha256:000")
    assert said.count("\n") == 1 and "-> of now): bring them back, or move reports/made/runs away" in said
    assert all_runs.main([study.name, "--run", study.runs[1].name]) == 1  # as each task of a cluster is started
    assert capsys.readouterr().err == said


def test_a_run_that_another_process_finishes_at_this_moment_has_not_failed(monkeypatch, tmp_path, capsys):
    """The other lets go of the run between our leaving it alone and our asking who holds it."""
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3"])
    asked = []

    def finishing(folder):
        asked.append(folder)
        if len(asked) == 3:  # asked before the run, in it, and after it
            made.fill(study)
        return "pid 1 on elsewhere" if len(asked) == 2 else None

    monkeypatch.setattr(all_runs, "holder", finishing)
    monkeypatch.setattr(all_runs.datasets, "load", lambda p: made.DATA)
    monkeypatch.setattr(all_runs, "estimates", lambda *_: {})
    assert all_runs.main([study.name]) == 0
    assert len(asked) >= 3 and "left to pid 1 on elsewhere" in capsys.readouterr().out


def announced(study):
    return all_runs.announce(study, all_runs.estimates(study.runs, records.load(study).set_index("run").epoch, 1), 1)


def test_the_time_is_measured_aside_and_said_where_it_could_not_be(monkeypatch, tmp_path):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3", "kernel-9"])
    assert re.search(r"2 of 2 runs to train, about .* in all: ", announced(study))
    monkeypatch.setattr(concurrent.futures, "ProcessPoolExecutor", Aside)
    monkeypatch.setattr(Aside, "answers", [100.0, None])
    text = announced(study)
    assert "about 2 min in all without 1 of them, whose time could not be measured: " in text


def killed(run):
    """In the place of `measured`: the system kills the process that measures."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_measurement_that_is_killed_stops_nothing(monkeypatch, tmp_path):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3", "kernel-9"])
    monkeypatch.setattr(all_runs, "measured", killed)
    assert "2 of 2 runs to train, in a time that could not be measured: " in announced(study)


class Aside(concurrent.futures.Executor):
    """In the place of the process that measures: gives `answers`, one a kind of run."""

    answers = ()

    def __init__(self, *_):
        self.left = list(self.answers)

    def submit(self, work, p):
        future = concurrent.futures.Future()
        future.set_result(self.left.pop(0))
        return future


TRACE = "print('\\x1b[31mImportError\\x1b[39m: torn', file=sys.stderr); "
ENDS = {
    TRACE + "sys.exit(1)": "ImportError: torn",
    TRACE + "sys.exit(130)": None,
    TRACE + "os.kill(os.getpid(), signal.SIGTERM)": None,
    "sys.exit(3)": "papermill ended with status 3",
    "os.kill(os.getpid(), signal.SIGSEGV)": "papermill ended with status -11",
    "pass": "notebooks/train.ipynb ran to its end and left no record of this run: was it changed?",
}


@pytest.mark.parametrize("code", ENDS)
def test_a_run_that_fails_before_training_leaves_its_reason_and_one_that_is_stopped_none(
    monkeypatch, tmp_path, capsys, code
):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3"])
    made.stop(study, study.runs[0], "failure", reason="of an earlier attempt", epoch=1)
    command = [all_runs.sys.executable, "-c", f"import os, signal, sys; {code}"]
    monkeypatch.setattr(all_runs, "notebook_command", lambda run, folder: command)
    monkeypatch.setattr(all_runs.datasets, "load", lambda p: made.DATA)
    monkeypatch.setattr(all_runs, "estimates", lambda *_: {})
    assert all_runs.main([study.name]) == 1
    shown = capsys.readouterr().err.splitlines()[-1]
    assert shown == f"{study.runs[0].name}: not finished. {ENDS[code] or 'It was stopped; the same command goes on.'}"
    row = records.load(study).iloc[0]
    assert (row.status, row.reason) == (("failed", ENDS[code]) if ENDS[code] else ("missing", ""))
    assert (ENDS[code] or "missing") in all_runs.status(study)


class Gpus(Aside):
    answers = (["3", "GPU-b"],)

    def submit(self, work):
        assert work is all_runs.machine.gpus
        return super().submit(work, None)


@pytest.mark.parametrize(
    "jobs, asked, threads",
    [(1, "", ""), (1, "3", "3"), (2, "", "4"), (2, "3", "3"), (2, "16", "4"), (3, "many", "2"), (99, "", "1")],
)
def test_runs_at_a_time_divide_the_cores_and_the_gpus_among_them(monkeypatch, tmp_path, capsys, jobs, asked, threads):
    """Each job beside the others, as many as there may be."""
    made.place(monkeypatch, tmp_path)
    settings = [{f"kernel-{k}": {"seeds": [0, 1, 2]}} for k in (3, 5, 7)]
    study = made.study(settings=[*settings, {"kernel-9": {"device": "cuda:1"}}])
    beside, given, door = [], {}, threading.Lock()

    def execute(command, environment):
        name = Path(command[4]).parent.name
        with door:
            given[name] = environment
            beside.append(environment.get("CUDA_VISIBLE_DEVICES"))
            together.append(sorted(beside, key=str))
        time.sleep(0.05)
        with door:
            beside.remove(environment.get("CUDA_VISIBLE_DEVICES"))

    together = []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-b")
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.setattr(all_runs.machine, "cores", lambda: 8)
    monkeypatch.setattr(all_runs, "process", Gpus)
    monkeypatch.setattr(all_runs, "execute", execute)
    monkeypatch.setattr(all_runs.datasets, "load", lambda p: made.DATA)
    monkeypatch.setattr(all_runs, "estimates", lambda *_: {})
    assert all_runs.main([study.name, "--jobs", str(jobs)]) == 1
    said = capsys.readouterr().err
    assert ("JOBS=99: taking 8, as many as there are cores" in said) == (jobs == 99)
    assert len(given) == 10 and max(map(len, together)) <= min(jobs, 8)
    assert {environment.get("OMP_NUM_THREADS") for environment in given.values()} == {threads}
    assert given.pop("k9-p1-seed0")["CUDA_VISIBLE_DEVICES"] == "3,GPU-b"  # it has chosen among them itself
    gpus = [environment["CUDA_VISIBLE_DEVICES"] for environment in given.values()]
    assert set(gpus) == ({"3,GPU-b"} if jobs == 1 else {"3", "GPU-b"})
    if jobs == 2:
        assert ["3", "GPU-b"] in together and not {("3", "3"), ("GPU-b", "GPU-b")} & set(map(tuple, together))


def test_nothing_of_torch_is_needed_to_read_records():
    modules = "from lib.runs import all_runs; from lib.report import page, tables, figures, sentences, run_figures"
    code = f"import sys; {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([all_runs.sys.executable, "-c", code]).returncode == 0


def test_settings_of_a_run_reach_the_notebook_whole(monkeypatch, tmp_path):
    """What papermill is given for a run builds exactly that run's parameters."""
    import yaml

    from lib.params import TYPES, Params

    monkeypatch.setattr(records, "REPORTS", tmp_path)
    given = []
    monkeypatch.setattr(all_runs, "execute", lambda command, _: given.append(command))
    for name in studies.names():
        for run in studies.load(name).runs:
            all_runs.train(studies.load(name), run, all_runs.shares(1))
            values = yaml.safe_load(given[-1][given[-1].index("-y") + 1])
            assert values.keys() == TYPES.keys()  # so that nothing saved in the notebook counts
            assert Params.of(**values).replace(setting="") == run.params.replace(setting="")
            assert records.run_folder(Params.of(**values)).name == run.name


def test_a_stopped_call_has_the_status_of_an_interrupt(monkeypatch, tmp_path, capsys):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3"])

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(all_runs, "train_all", stopped)
    assert all_runs.main([study.name]) == 130
    assert "goes on from the last checkpoints" in capsys.readouterr().err


def test_the_documents_words_for_a_scheduler_name_the_runs_that_are_left(monkeypatch, tmp_path):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3", "kernel-5", "kernel-9"])
    made.fill(study, skip={run.name for run in study.runs[1:]})
    made.stop(study, study.runs[1], "failure", reason="out of memory: lower batch_size", epoch=1)
    text = (Path(__file__).parents[1] / "docs" / "machines.md").read_text()
    program = re.search(r"\| awk '(.*?)' \|", text)[1]
    shown = subprocess.run(["awk", program], input=all_runs.status(study), capture_output=True, text=True).stdout
    assert shown.split() == [run.name for run in study.runs[1:]]
