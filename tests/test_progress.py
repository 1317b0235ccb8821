"""A line that renews itself at a terminal, a line an epoch in a log, a bar in Jupyter."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import nbformat
import numpy as np
import pytest

from copy_of import Copy
from lib import study as studies
from lib.kernel import PROGRESS
from lib.runs import progress

HISTORY = [{"epoch": 1, "loss": 1.5, "train_acc": 40.0, "val_acc": 41.25, "images_per_second": 1234.5}]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    copy = Copy(tmp_path_factory.mktemp("progress"))
    (copy.root / "params/studies/smoke.yaml").write_text(SMALL)
    return copy


# Two runs that train for some seconds.
SMALL = """# For tests.
study: smoke
settings: [kernel-3: {patch: 4}, kernel-9: {patch: 4}]
dim: 8
depth: 1
epochs: 12
train_size: 5000
val_size: 200
"""


def screen(text: str) -> list[str]:
    """What the terminal shows in the end: the lines that were not overwritten."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[A|\x1b\[\d*m|[\r\n]|[^\r\n\x1b]+", text):
        if part == "\x1b[A":
            row = max(0, row - 1)
        elif part == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif part == "\r":
            column = 0
        elif not part.startswith("\x1b"):
            lines[row] = lines[row][:column] + part + lines[row][column + len(part) :]
            column += len(part)
        if part in ("\n", "\x1b[A"):
            column = 0
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("jobs, columns", [("1", 100), ("2", 60)])
def test_a_study_at_a_terminal_has_a_line_for_itself_and_one_for_each_run(copy, jobs, columns):
    for path in copy.root.glob("reports/smoke/runs/*/result.json"):
        path.unlink()
    status, text = copy.at_terminal("python", "-m", "lib.runs", "smoke", "--jobs", jobs, columns=columns)
    assert status == 0, text
    drawn = [line for line in re.split(r"[\r\n]|\x1b\[A", text) if " left" in line and "█" in line]
    assert all(len(line) <= columns for line in drawn)
    for number, run in enumerate(("k3-p4-seed0", "k9-p4-seed0"), start=1):
        of_run = [line for line in drawn if line.startswith(f"{number}/2 {run}  epoch ")]
        assert len({re.search(r"epoch (\d+)/12", line)[1] for line in of_run}) > 2
        assert any(" %" in line for line in of_run) and (columns < 100 or any(" images/s" in line for line in of_run))
    assert any(line.startswith("smoke: 0 of 2 runs ") for line in drawn)
    end = screen(text)
    assert end[-1] == "smoke: 2 of 2 runs are finished"
    assert sum(" on the test set, " in line for line in end) == 2
    assert not any("epoch " in line for line in end)  # in place: nothing of it stays


@pytest.mark.timeout(600)
@pytest.mark.parametrize("term, columns", [("xterm", 100), ("xterm", 0), ("dumb", 100)])
def test_a_run_by_papermill_has_a_line_too_and_an_unable_terminal_a_line_an_epoch(copy, term, columns):
    """0 columns: a pseudo-terminal whose size nobody has set."""
    words = ("-f", "params/studies/smoke.yaml", "-p", "kernel", "3", "-p", "patch", "4", "-p", "force", "True")
    words = ("papermill", "notebooks/train.ipynb", "executed.ipynb", *words)
    status, text = copy.at_terminal(*words, columns=columns, TERM=term)
    assert status == 0, text
    lines, end = re.findall(r"epoch \d+/12  loss ", text), screen(text)
    assert any(line.startswith("smoke/k3-p4-seed0: ConvMixer-8/1, k=3, p=4, 12 epochs; about ") for line in end)
    assert any(re.match(r"k3-p4-seed0  done: .* on the test set, ", line) for line in end)
    if term == "dumb":
        assert len(lines) == 12 and "\x1b[A" not in text and "█" not in text
    else:
        assert not lines and re.search(r"\rk3-p4-seed0  epoch \d+/12 \S*█.* left  ", text)
        assert not any("epoch " in line for line in end[1:] if "ConvMixer" not in line)
    outputs = nbformat.read(copy.root / "executed.ipynb", as_version=4)
    assert "widgets" not in outputs.metadata
    said = "".join(
        part.text for cell in outputs.cells for part in cell.get("outputs", ()) if part.output_type == "stream"
    )
    assert said.count("\n") < 20 and "\r" not in said


class Clock(SimpleNamespace):
    """A run of 2 epochs of 10 steps, in the place of train.Clock."""

    def __init__(self, step, epoch=0, history=(), val_size=200):
        p = SimpleNamespace(epochs=2, val_size=val_size)
        state = SimpleNamespace(step=step, epoch=epoch, history=list(history), losses=Losses())
        super().__init__(p=p, state=state, steps=10, begun=0.0)

    def done(self):
        return 10 * self.state.epoch + self.state.step

    def left(self):
        return 90.0

    def speed(self):
        return 1520.0


class Losses(list):
    def __getitem__(self, rows):
        return self

    def mean(self):
        return 2.25


def test_a_log_has_a_line_an_epoch_and_in_a_long_one_after_ten_seconds_and_then_each_minute(monkeypatch):
    said, now = [], SimpleNamespace(perf_counter=lambda: now.time, time=0.0)
    monkeypatch.setattr(progress, "time", now)
    show = progress.lines(said.append)
    for now.time in (1.0, 9.9, 10.1, 30.0, 69.0, 70.2):
        show(Clock(step=5))
    show(Clock(step=0, epoch=1, history=HISTORY))
    inside = "epoch 1/2  step 5/10  loss 2.250  2 min left"
    assert said == [inside, inside, "epoch 1/2  loss 1.500  train 40.00 %  val 41.25 %  1234 images/s  2 min left"]


def test_what_is_sent_is_what_a_line_shows():
    first = progress.moment("k3", Clock(step=5))
    assert (first["done"], first["steps"], first["epoch"], first["accuracy"], first["speed"]) == (5, 20, 1, None, 1520)
    last = progress.moment("k3", Clock(step=0, epoch=2, history=HISTORY))
    assert (last["done"], last["epoch"], last["accuracy"], last["speed"]) == (20, 2, 41.25, 1234.5)
    assert progress.moment("k3", Clock(step=5, epoch=1, history=HISTORY, val_size=0))["accuracy"] == 40
    json.dumps(last)


@pytest.mark.parametrize(
    "term, inside, able", [("xterm", "", True), ("dumb", "", False), (None, "", False), ("xterm", "7", False)]
)
def test_a_line_that_renews_itself_needs_a_terminal_that_can(monkeypatch, term, inside, able):
    """A notebook's `!make runs` has a pseudo-terminal, and its output is no screen."""
    for name, value in (("TERM", term), ("JPY_PARENT_PID", inside)):
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True))
    assert progress.at_terminal() == able
    monkeypatch.setattr(sys, "stdout", None)
    assert not progress.at_terminal()


@pytest.mark.parametrize("place", ["/nowhere/socket", "x" * 300])
def test_nobody_listens_and_the_training_goes_on(monkeypatch, place):
    monkeypatch.setenv(PROGRESS, place)
    with progress.watched("k3", print) as show:
        show(Clock(step=5))


@pytest.mark.parametrize("columns, kept", [(100, ("41.25 %", "1520 images/s")), (60, ("41.25 %",)), (40, ()), (10, ())])
def test_what_a_narrow_terminal_has_no_room_for_is_left_out_whole(monkeypatch, columns, kept):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = progress.run_line("3/27 k9-p1-seed0", epoch=4, epochs=12, accuracy=41.25, speed=1520.4)
    assert text == "  ".join(["3/27 k9-p1-seed0  epoch 4/12 {bar} {remaining} left", *kept])


def test_the_time_left_of_a_study_weighs_its_runs_by_what_they_take(monkeypatch):
    """k3 is known to take 10 s, k9 90 s: k3 done and a third of what is left of k9 is 40 of 100."""
    study = studies.load("smoke")
    names = [run.name for run in study.runs]
    bars = progress.Bars(study, {names[0]: 10.0, names[1]: 90.0})
    facts = {"epoch": 1, "epochs": 2, "accuracy": None, "speed": 1.0}
    bars.update(run=names[0], done=5, steps=10, **facts)
    assert bars.whole.n == 0  # where it went on is nothing that was done here
    bars.update(run=names[0], ended=True)
    bars.update(run=names[1], done=10, steps=40, **facts)
    bars.update(run=names[1], done=20, steps=40, **facts)
    assert (bars.whole.n, bars.whole.total) == (40, 100)
    assert bars.whole.bar_format.startswith(f"smoke: 1 of {len(names)} runs to train ")
    bars.close()


def test_the_time_left_of_a_study_begins_as_its_estimate_and_then_follows_what_is_measured(monkeypatch):
    study = studies.load("smoke")
    names = [run.name for run in study.runs]
    bars = progress.Bars(study, dict.fromkeys(names, 1000.0), jobs=2)

    def left(seconds: float) -> float:
        """As tqdm has it, `seconds` after the first look."""
        shown = bars.whole.format_dict
        rate = (shown["n"] - shown["initial"]) / (shown["elapsed"] + seconds)
        return (shown["total"] - shown["n"]) / rate

    whole = 1000 * len(names) / 2
    assert left(0) == pytest.approx(whole, rel=0.01)
    assert left(10) < 1.2 * whole  # the kernels start, and nothing is done yet
    bars.ended = set(names[:2])
    bars.update()
    assert left(2000) == pytest.approx(2000, rel=0.15)  # half of it has taken twice as long as was thought
    bars.close()


def test_what_is_done_is_never_more_than_the_whole():
    """A sum of floats depends on their order; tqdm would warn of a bar that is longer than itself."""
    study = studies.load("smoke")
    names = [run.name for run in study.runs]
    for seed in range(30):
        bars = progress.Bars(study, dict(zip(names, np.random.default_rng(seed).random(len(names)), strict=True)))
        bars.ended = set(names)
        bars.update()
        assert bars.whole.n <= bars.whole.total
        bars.close()


def test_unknown_times_count_as_the_mean_of_the_others():
    study = studies.load("smoke")
    names = [run.name for run in study.runs]
    for seconds, total in (((None, 30.0, 10.0), 60.0), ((None, None), 2.0)):
        bars = progress.Bars(study, dict(zip(names, seconds, strict=False)))
        assert bars.whole.total == total
        bars.close()


IN_JUPYTER = """
from lib.params import Params
from lib.runs import run
record = run.run(Params(study="jupyter", kernel=3, patch=8, dim=8, depth=1, epochs=3, train_size=2000, val_size=200))
"""


@pytest.mark.timeout(300)
def test_in_jupyter_there_is_one_bar_and_no_stream_of_lines(copy):
    """By nbclient itself, as Jupyter runs it: what a kernel shows that is told nothing."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(IN_JUPYTER)])
    nbformat.write(notebook, copy.root / "jupyter.ipynb")
    code = (
        "import nbformat, nbclient; n = nbformat.read('jupyter.ipynb', 4); nbclient.NotebookClient(n).execute(); "
        "nbformat.write(n, 'jupyter.ipynb')"
    )
    environment = {**copy.environment, "COLUMNS": "40"}  # of the terminal where Jupyter was started
    subprocess.run([sys.executable, "-c", code], cwd=copy.root, env=environment, check=True, timeout=240)
    executed = nbformat.read(copy.root / "jupyter.ipynb", as_version=4)
    (cell,) = executed.cells
    kinds = [output.output_type for output in cell.outputs]
    assert kinds.count("display_data") == 1
    (bar,) = [output for output in cell.outputs if output.output_type == "display_data"]
    assert "application/vnd.jupyter.widget-view+json" in bar.data
    said = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert " on the test set" in said and said.count("\n") == 1
    states = executed.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"].values()
    shown = [state["state"].get("value", "") for state in states]
    for part in ("epoch\u20073/3", "images/s"):
        assert any(isinstance(value, str) and part in value for value in shown)
