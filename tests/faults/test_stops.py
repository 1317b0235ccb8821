"""Real make, papermill and Jupyter, in a copy of the repository: stopped, doubled, mistaken, and started again."""

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import time

import jupyter_client
import nbformat
import pytest
from processes import TIMING, own_group

from copy_of import Copy
from lib import records
from lib.study import ROOT

# Some ten seconds of training, so that there is something to stop.
STUDY = """# For tests: two runs that last long enough to be stopped.
study: tiny
settings: [kernel-3: {patch: 4}, kernel-5: {patch: 4}]
patch: 4
dim: 16
depth: 1
epochs: 40
train_size: 5000
val_size: 200
checkpoint_minutes: 0.01
"""
TRAINS = " images/s"  # is in the line of an epoch
SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]


class Home(Copy):
    """A copy in which make finds its virtual environment ready, and with a study of two small runs."""

    def __init__(self, root):
        super().__init__(root)
        for name in ("Makefile", "pyproject.toml"):
            shutil.copy(ROOT / name, root)
        environment = root.with_name(f"{root.name} environment")
        python = environment / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec {self.command("python")[0]} "$@"\n')
        python.chmod(0o755)
        (environment / ".ready").touch()
        (root / ".venv").symlink_to(environment)  # a link is not taken for the copied .venv of another folder
        os.utime(root / "pyproject.toml", (0, 0))
        (root / "params" / "studies" / "tiny.yaml").write_text(STUDY)

    def make(self, *words) -> list[str]:
        return ["make", "-C", str(self.root), *words]

    def papermill(self, *words) -> list[str]:
        return self.command("papermill", "notebooks/train.ipynb", "-f", "params/studies/tiny.yaml", *words)

    def start(self, command):
        return own_group(
            command, cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def finish(self, command) -> str:
        with self.start(command) as process:
            shown, _ = process.communicate(timeout=400)
        assert process.returncode == 0, shown
        return shown

    def folder(self, run: str):
        return self.root / "reports" / "tiny" / "runs" / run

    def outcome(self, run: str) -> tuple:
        record = json.loads((self.folder(run) / records.RESULT).read_text())
        history = [{name: value for name, value in epoch.items() if name not in TIMING} for epoch in record["history"]]
        return (
            (self.folder(run) / records.WEIGHTS).read_bytes(), (self.folder(run) / records.ARRAYS).read_bytes(),
            history, record["test_acc"],
        )  # fmt: skip


def until(process, word: str) -> str:
    """Reads what a process prints up to a line with this word in it."""
    shown = ""
    for line in process.stdout:
        shown += line
        if word in line:
            return shown
    raise AssertionError(f"ended without '{word}':\n{shown}")


K3, K5 = "k3-p4-seed0", "k5-p4-seed0"


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return Home(tmp_path_factory.mktemp("stops") / "home")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The outcome of both runs of the study where nothing happens."""
    home = Home(tmp_path_factory.mktemp("stops") / "undisturbed")
    home.finish(home.make("runs", "STUDY=tiny"))
    return {run: home.outcome(run) for run in (K3, K5)}


@pytest.fixture
def anew(home):
    """The copy without any record."""
    shutil.rmtree(home.root / "reports", ignore_errors=True)
    (home.root / "reports").mkdir()
    return home


def stopped(home, command, number, group=False) -> str:
    """Starts a command, sends a signal to it (or, as a terminal does, to its whole group); what it still prints."""
    with home.start(command) as process:
        until(process, TRAINS)
        (os.killpg if group else os.kill)(process.pid, number)
        rest, _ = process.communicate(timeout=60)
        assert process.returncode != 0
    return rest


@pytest.mark.timeout(600)
@pytest.mark.fault(29, "SIGTERM, SIGHUP, SIGINT and SIGKILL to papermill by turns, the same command at once after each")
def test_papermill_is_stopped(anew, undisturbed, seen):
    command = anew.papermill("-p", "kernel", "3", "-p", "setting", "kernel-3")
    for number in SIGNALS:
        with anew.start(command) as process:
            until(process, TRAINS)
            os.kill(process.pid, number)
            process.wait(60)
            assert process.returncode != 0
            if number == signal.SIGINT:
                assert "Traceback" not in process.stdout.read()
    shown = anew.finish(command)
    assert "going on from epoch " in shown
    assert anew.outcome(K3) == undisturbed[K3]
    seen("papermill: the same command at once goes on after SIGTERM, SIGHUP, SIGINT, SIGKILL; bit-identical")


@pytest.mark.timeout(600)
@pytest.mark.fault(29, "Ctrl-C in make runs, SIGTERM to it, its terminal closed (SIGHUP)")
def test_make_is_stopped(anew, undisturbed, seen):
    command = anew.make("runs", "STUDY=tiny")
    rest = stopped(anew, command, signal.SIGINT, group=True)
    assert "goes on from the last checkpoints" in rest and "Traceback" not in rest
    for number, group in ((signal.SIGTERM, False), (signal.SIGHUP, True)):
        stopped(anew, command, number, group)  # make passes SIGTERM on; SIGHUP comes to all of a terminal's processes
        time.sleep(3)
        assert not running(anew), f"signal {number} has left a training behind"
    anew.finish(command)
    assert {run: anew.outcome(run) for run in undisturbed} == undisturbed
    seen("make: Ctrl-C, SIGTERM, SIGHUP stop the training too; the same command goes on; bit-identical")


@pytest.mark.timeout(600)
@pytest.mark.fault(29, "Ctrl-C at a terminal where a line renews itself, and that terminal closed")
def test_a_terminal_with_a_live_line_is_left(anew, undisturbed, seen):
    make = anew.make("runs", "STUDY=tiny")
    for command in (anew.papermill("-p", "kernel", "3", "-p", "setting", "kernel-3"), make):
        for close in (False, True):
            rest = left(anew, command, close)
            assert close or ("Traceback" not in rest and re.search("stopped; .* goes on|interrupted; .* goes on", rest))
            time.sleep(5)
            assert not running(anew), "a training was left behind"
    assert "going on from epoch " in anew.finish(make)
    assert {run: anew.outcome(run) for run in undisturbed} == undisturbed
    seen("at a terminal: Ctrl-C, closed; nothing left behind, the same command goes on; bit-identical")


def left(home, command, close) -> str:
    """Starts a command at a terminal and, once it shows a run, closes that or types Ctrl-C; what is still said."""
    process, terminal = pty.fork()
    if not process:
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)  # also where the tests themselves are in the background, under nohup
        os.chdir(home.root)
        os.execvpe(command[0], command, {**home.environment, "TERM": "xterm"})
    shown = b""
    while not re.search(rb"epoch \d+/40 .* left", shown):
        shown += os.read(terminal, 4096)
    shown = b""
    if close:
        os.close(terminal)
    else:
        os.write(terminal, b"\x03")
        with contextlib.suppress(OSError):  # the terminal of a program that has ended
            while block := os.read(terminal, 4096):
                shown += block
        os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0
    return shown.decode()


def running(home) -> list[str]:
    """Command lines of processes that work in a copy."""
    lines = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout.splitlines()
    return [line for line in lines if str(home.root) in line and "papermill" in line]


@pytest.mark.timeout(600)
@pytest.mark.fault(29, "a kernel as Jupyter has it, interrupted in training, then all cells run again")
def test_a_kernel_is_interrupted(anew, undisturbed, seen):
    notebook = nbformat.read(anew.root / "notebooks" / "train.ipynb", as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    values = {"kernel": 3, "patch": 4, "dim": 16, "depth": 1, "epochs": 40, "train_size": 5000, "val_size": 200}
    cells[0] += "\n" + "\n".join(f"{name} = {value}" for name, value in values.items())
    cells[0] += "\nstudy = 'tiny'\nsetting = 'kernel-3'\ncheckpoint_minutes = 0.01"
    manager, client = jupyter_client.manager.start_new_kernel(
        kernel_name="python3", cwd=str(anew.root / "notebooks"), env=anew.environment
    )

    def execute(source, interrupt_at=None):
        interrupted = []

        def hook(message):
            if interrupt_at and not interrupted and re.search(interrupt_at, repr(message["content"])):
                interrupted.append(manager.interrupt_kernel())

        return client.execute_interactive(source, timeout=300, output_hook=hook)["content"]

    try:
        training = next(i for i, cell in enumerate(cells) if "run.run(" in cell)
        for cell in cells[:training]:
            assert execute(cell)["status"] == "ok"
        # A bar's news, in which a space is U+2007.
        assert execute(cells[training], r"epoch\\u2007[4-9]/")["ename"] == "KeyboardInterrupt"
        for again in range(2):  # the second time with all that the whole notebook has defined
            for cell in cells:
                answer = execute(cell)
                assert answer["status"] == "ok", f"time {again + 2}: {answer.get('evalue')}"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert anew.outcome(K3) == undisturbed[K3]
    seen("Jupyter: interrupted, all cells again twice; bit-identical")


@pytest.mark.timeout(600)
@pytest.mark.fault(24, "papermill twice on one run; then SIGKILL to the first one's kernel")
def test_two_on_one_run(anew, undisturbed, seen):
    command = anew.papermill("-p", "kernel", "3", "-p", "setting", "kernel-3")
    with anew.start(command) as first:
        until(first, TRAINS)
        owner = (anew.folder(K3) / ".owner").read_text()
        pid = int(owner.split()[1])
        os.kill(pid, signal.SIGSTOP)  # so that it is still there when the second one asks
        second = subprocess.run(
            command, cwd=anew.root, env=anew.environment, capture_output=True, text=True, timeout=200
        )
        assert second.returncode == 1
        line = second.stderr.splitlines()[-1]
        assert line == f"train.ipynb: {K3}: locked by {owner}; wait for it or stop it"
        assert "Traceback" not in second.stderr
        os.kill(pid, signal.SIGKILL)
        shown, _ = first.communicate(timeout=100)
        assert first.returncode != 0 and "Traceback" not in shown
        assert "the same command goes on" in shown and "memory" in shown.splitlines()[-1]
    anew.finish(command)
    assert anew.outcome(K3) == undisturbed[K3]
    seen(f"'{line.split(': ', 2)[2].split(' on ')[0]} on HOST'; after the kill the lock is free; bit-identical")


@pytest.mark.timeout(600)
@pytest.mark.fault(24, "make runs twice at once")
def test_two_makes_share_a_study(anew, undisturbed, seen):
    command = anew.make("runs", "STUDY=tiny")
    with anew.start(command) as first, anew.start(command) as second:
        shown = [process.communicate(timeout=400)[0] for process in (first, second)]
        assert [first.returncode, second.returncode] == [0, 0], shown
    assert sum(text.count("epoch 40/40") for text in shown) == 2
    assert {run: anew.outcome(run) for run in undisturbed} == undisturbed
    seen("each run trained once; bit-identical")


def results(home) -> list[tuple]:
    paths = [home.folder(run) / records.RESULT for run in (K3, K5)]
    return [(path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in paths]


@pytest.mark.timeout(600)
@pytest.mark.fault(28, "papermill and make again on finished runs")
@pytest.mark.fault(37, "make runs with a setting that cannot be trained, twice")
@pytest.mark.fault(12, "make runs with device: cuda in the study's file")
def test_make_tells_the_truth(anew, seen):
    command = anew.make("runs", "STUDY=tiny")
    study = anew.root / "params" / "studies" / "tiny.yaml"
    try:
        study.write_text(STUDY.replace("epochs: 40", "epochs: 1"))
        anew.finish(command)
        before = results(anew)
        begun = time.monotonic()
        assert "to train" not in anew.finish(command)
        passed = time.monotonic() - begun
        anew.finish(anew.papermill("-p", "kernel", "3"))
        assert results(anew) == before
        assert passed < 60
        seen(f"finished: make skips in {passed:.0f} s, records untouched", 28)
        study.write_text(STUDY.replace("epochs: 40", "epochs: 1").replace("kernel-5: {", "kernel-5: {lr: 1.0e+30, "))
        for _ in range(2):
            failed = subprocess.run(command, env=anew.environment, capture_output=True, text=True, timeout=300)
            assert failed.returncode == 2 and "1 of 2 runs are finished" in failed.stdout
            assert "became NaN or infinite" in failed.stderr and "Traceback" not in failed.stderr
        seen("failing: make's status is 2 both times", 37)
        if not shutil.which("nvidia-smi"):
            shutil.rmtree(anew.root / "reports")
            study.write_text(STUDY.replace("epochs: 40", "epochs: 2\ndevice: cuda"))
            failed = subprocess.run(command, env=anew.environment, capture_output=True, text=True, timeout=300)
            assert failed.returncode == 2 and "Traceback" not in failed.stderr
            assert "device=cuda: there is none here, give device=cpu or auto" in failed.stderr
            seen("make: 'device=cuda: there is none here', no traceback", 12)
    finally:
        study.write_text(STUDY)


@pytest.mark.timeout(600)
@pytest.mark.fault(38, "papermill from the root, from notebooks/, in 'Füße und Köpfe 日本'; make runs there")
def test_the_same_result_from_anywhere(tmp_path, seen):
    home = Home(tmp_path / "Füße und Köpfe 日本")
    (home.root / "params" / "studies" / "tiny.yaml").write_text(STUDY.replace("epochs: 40", "epochs: 1"))
    home.finish(home.make("runs", "STUDY=tiny"))
    outcomes = [home.outcome(K3)]
    for folder, up in ((".", ""), ("notebooks", "../")):
        shutil.rmtree(home.folder(K3))
        words = ("-f", f"{up}params/studies/tiny.yaml", "-p", "kernel", "3")
        done = home.run("papermill", f"{up}notebooks/train.ipynb", *words, folder=folder)
        assert done.returncode == 0, done.stderr
        outcomes.append(home.outcome(K3))
    assert outcomes[0] == outcomes[1] == outcomes[2]
    seen("bit-identical (a copy; its lib comes first through PYTHONPATH)")


@pytest.mark.timeout(600)
@pytest.mark.fault(25, "a disk that fills up while papermill writes the executed notebook")
def test_the_executed_notebook_does_not_fit(anew, undisturbed, disk, seen):
    output = disk(1) / "executed.ipynb"
    command = anew.papermill(str(output), "-p", "kernel", "3", "-p", "setting", "kernel-3")
    with anew.start(command) as process:
        until(process, TRAINS)
        (output.parent / "ballast").write_bytes(b"")
        with open(output.parent / "ballast", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(512))
            except OSError:
                pass
        shown, _ = process.communicate(timeout=200)
    assert process.returncode != 0
    assert "No space left on device" in shown.splitlines()[-1] and "Traceback" not in shown
    (output.parent / "ballast").unlink()
    anew.finish(command)
    assert anew.outcome(K3) == undisturbed[K3]
    seen(f"papermill: '{shown.splitlines()[-1].rpartition('/')[2]}'; room made: bit-identical")
