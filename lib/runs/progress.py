"""How far a training is: a line that renews itself at a terminal, a bar in Jupyter, a line an epoch anywhere else.

A run trains in a kernel, and the terminal belongs to the program that has started it, perhaps with other runs beside
it. So that program opens a socket (`shown`), names it in the environment of what it starts, and draws what the kernels
send there (`watched`) several times a second. Nothing of it passes through the executed notebook. No torch here.
"""

import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib import DummyTqdmFile

from lib.kernel import PROGRESS
from lib.records import span
from lib.study import Study

EVERY = 0.25  # seconds between two looks at a run
FIRST_SAID, SAY_EVERY = 10, 60  # in a log: seconds to the first line inside an epoch, and between the others
NOTEBOOK_ROOM = os.terminal_size((120, 25))  # whose page is wider than the terminal that Jupyter was started in
PRIOR = 0.05  # of a study's work: so much weight has the estimate in the time that is left, beside what is measured
NARROWEST = len("█████ 00:00:00 left")  # what a line has in any case beside its title


@contextlib.contextmanager
def watched(name: str, say: Callable[[str], None]) -> Iterator[Callable]:
    """What `fit` is to call with its clock after each step and each epoch of the run `name`."""
    place = os.environ.get(PROGRESS)
    if place:
        yield seldom(lambda clock: send(**moment(name, clock)))
    elif place is None and (at_terminal() or in_notebook()):
        with drawn() as update:
            yield seldom(lambda clock: update(**moment(name, clock)))
    else:
        yield lines(say)


def lines(say: Callable[[str], None]) -> Callable:
    """For a log: a line an epoch, and in a long epoch one a minute."""
    said = None

    def show(clock) -> None:
        nonlocal said
        p, state, now = clock.p, clock.state, time.perf_counter()
        if state.step == 0:
            say(epoch_line(state.history[-1], p.epochs, clock.left()))
        elif now - (said or clock.begun) > (SAY_EVERY if said else FIRST_SAID):
            said, loss, left = now, state.losses[: state.step].mean(), span(clock.left())
            say(f"epoch {state.epoch + 1}/{p.epochs}  step {state.step}/{clock.steps}  loss {loss:.3f}  {left} left")

    return show


def epoch_line(entry: dict, epochs: int, left: float) -> str:
    """An epoch of a history in one line, with the seconds that are left."""
    val = "" if entry["val_acc"] is None else f"  val {entry['val_acc']:.2f} %"
    return (
        f"epoch {entry['epoch']}/{epochs}  loss {entry['loss']:.3f}  train {entry['train_acc']:.2f} %{val}  "
        f"{entry['images_per_second']:.0f} images/s  {span(left)} left"
    )


def moment(name: str, clock) -> dict:
    """Where a run is, as a line shows it: steps, epoch (1-based), the last accuracy in per cent, images a second."""
    p, state = clock.p, clock.state
    last = state.history[-1] if state.history else {}
    accuracy = last.get("val_acc") if p.val_size else last.get("train_acc")
    return {
        "run": name, "done": clock.done(), "steps": p.epochs * clock.steps, "epochs": p.epochs,
        "epoch": min(state.epoch + 1, p.epochs), "accuracy": accuracy,
        "speed": clock.speed() if state.step else last["images_per_second"],
    }  # fmt: skip


def seldom(show: Callable) -> Callable:
    """`show` after each epoch, and inside it every EVERY seconds: a step of a small network takes a millisecond."""
    shown = -EVERY

    def sometimes(clock) -> None:
        nonlocal shown
        if clock.state.step == 0 or time.perf_counter() - shown > EVERY:
            shown = time.perf_counter()
            show(clock)

    return sometimes


def send(**message) -> None:
    """Says something to whoever draws, if anybody does. It never waits, and it is no fault if nobody listens."""
    if place := os.environ.get(PROGRESS):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(json.dumps(message).encode(), place)


def at_terminal() -> bool:
    """Whether what is printed appears on a terminal that can write over a line; a notebook's `!make` has none."""
    able = os.environ.get("TERM", "dumb") not in ("dumb", "unknown") and "JPY_PARENT_PID" not in os.environ
    with contextlib.suppress(ValueError, AttributeError):  # stdout is closed, or there is none
        return able and sys.stdout.isatty()
    return False


def in_notebook() -> bool:
    """Whether this is a kernel, whose output somebody may look at in Jupyter."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and "IPKernelApp" in shell.config


@contextlib.contextmanager
def shown(*about) -> Iterator[None]:
    """Shows the runs that are trained meanwhile by kernels, if this is a terminal; what is printed stands above.

    about: of a whole study, to have a line for it: see Bars.
    """
    if PROGRESS in os.environ or not at_terminal():
        yield
        return
    with contextlib.ExitStack() as open_:
        try:
            folder = open_.enter_context(tempfile.TemporaryDirectory(prefix="progress-", ignore_cleanup_errors=True))
            place = str(Path(folder) / "socket")
            inbox = open_.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            inbox.bind(place)
        except (OSError, AttributeError):  # no such sockets, or a path too long for one: lines, as in a log
            yield
            return
        update = open_.enter_context(drawn(*about))
        drawing = threading.Thread(target=draw, args=(inbox, update), daemon=True)
        drawing.start()
        os.environ[PROGRESS] = place
        try:
            yield
        finally:
            send(end=True)
            del os.environ[PROGRESS]
            drawing.join(2)


def draw(inbox: socket.socket, update: Callable) -> None:
    """Draws what comes, until it is the end; once a second the times go on by themselves."""
    inbox.settimeout(1)
    while True:
        try:
            message = json.loads(inbox.recv(4096))
        except TimeoutError:
            message = {}
        if "end" in message:
            return
        if not at_terminal():  # closed; where make is its first process, make waits for us and passes no signal on
            os.kill(os.getpid(), signal.SIGHUP)
            return
        update(**message)


class Bars:
    """A tqdm bar for each run that there is news of and, above them, one for the whole study.

    seconds: what each run of the study that is to be trained takes, None where nobody knows; jobs: how many at a time.
    """

    def __init__(self, study: Study | None = None, seconds: dict[str, float | None] | None = None, jobs: int = 1):
        look = {"bar_format": " ", "leave": False, "smoothing": 0, "file": sys.stdout}
        self.new = functools.partial(tqdm, **look, **shape())
        if in_notebook():
            from tqdm.auto import tqdm as widget  # importing the widgets takes its time

            self.new = functools.partial(widget, **look, dynamic_ncols=True)
        self.study, self.ended = study, set()
        known = [value for value in (seconds or {}).values() if value is not None] or [1.0]
        mean = sum(known) / len(known)
        self.work = {run: mean if value is None else value for run, value in (seconds or {}).items()}
        self.whole = self.new(total=sum(self.work.values())) if study else None
        if study:  # the estimate counts as the speed of work that is done, until more than PRIOR of the work is
            self.whole.initial -= PRIOR * self.whole.total
            self.whole.start_t -= PRIOR * self.whole.total / jobs
        self.runs: dict[str, tqdm] = {}
        self.update()

    def update(self, run: str = "", ended: bool = False, done: int = 0, steps: int = 0, **facts) -> None:
        """News of a run: `moment`'s, or that it has ended. Without any, the times go on."""
        if ended:
            self.ended.add(run)
            if run in self.runs:
                self.runs.pop(run).close()
        elif run:
            if run not in self.runs:
                self.runs[run] = self.new(total=steps, initial=done)
            self.runs[run].bar_format = run_line(self.number(run) + run, **facts)
            self.runs[run].n = done
        if self.study:
            under_way = sum(self.work.get(run, 0) * share(bar) for run, bar in self.runs.items())
            finished = sum(self.work.get(run, 0) for run in self.ended)
            self.whole.n = min(under_way + finished, self.whole.total)  # which was summed in another order
            left = len(self.work) - len(self.ended)
            self.whole.bar_format = line(f"{self.study.name}: {left} of {len(self.study.runs)} runs to train")
        for bar in self.all():
            if not bar.dynamic_ncols:
                vars(bar).update(shape())
            bar.refresh()

    def all(self) -> list[tqdm]:
        """The bars there are, the study's first."""
        return [*([self.whole] if self.study else []), *self.runs.values()]

    def number(self, run: str) -> str:
        """Which run of how many, or nothing."""
        names = [other.name for other in self.study.runs] if self.study else []
        return f"{names.index(run) + 1}/{len(names)} " if run in names else ""

    def close(self) -> None:
        for bar in self.all():
            bar.close()


@contextlib.contextmanager
def drawn(*about) -> Iterator[Callable]:
    """Bars for as long as the block runs, what is printed above them; yields their `update`."""
    with contextlib.ExitStack() as ends:
        bars = ends.enter_context(contextlib.closing(Bars(*about)))
        if at_terminal():
            ends.enter_context(contextlib.redirect_stdout(DummyTqdmFile(sys.stdout)))
            ends.enter_context(contextlib.redirect_stderr(DummyTqdmFile(sys.stderr)))
        yield bars.update


def shape() -> dict[str, int]:
    """The room for a line, as tqdm names it; it would take a terminal that does not say its size to have none."""
    size = NOTEBOOK_ROOM if in_notebook() else shutil.get_terminal_size()
    return {"ncols": size.columns - 1, "nrows": size.lines - 1}


def share(bar: tqdm) -> float:
    """How much of what a bar had before it is done."""
    return (bar.n - bar.initial) / max(1, bar.total - bar.initial)


def run_line(title: str, epoch: int, epochs: int, accuracy: float | None, speed: float) -> str:
    """tqdm's format for the line of a run."""
    right = [] if accuracy is None else [f"{accuracy:.2f} %"]
    return line(f"{title}  epoch {epoch}/{epochs}", *right, f"{speed:.0f} images/s")


def line(title: str, *facts: str) -> str:
    """tqdm's format for a line that this terminal has room for: what does not fit is left out whole, the last first."""
    room = shape()["ncols"] - len(title) - NARROWEST - 1
    fitting = []
    for fact in facts:
        room -= len(fact) + 2
        fitting += [fact] if room >= 0 else []
    return "  ".join([f"{title} {{bar}} {{remaining}} left", *fitting])
