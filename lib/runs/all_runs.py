"""All runs of a study, each by papermill in a process of its own: `python -m lib.runs STUDY [--jobs N | --status]`.

With `--submit` they are left to a cluster (see cluster.py). With `--run NAME` (more than once: each) only that run, for
a scheduler that starts each run itself.

Finished runs are skipped, unfinished ones go on, runs that another process holds are left to it. One that fails
does not stop the others, but makes the exit status 1.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import queue
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lib import kernel, machine, records
from lib.data import datasets
from lib.params import ParameterError, UserError
from lib.records import span
from lib.runs import cluster, progress
from lib.runs.lock import claim, holder
from lib.study import ROOT, Run, Study, load, names

NOTEBOOK = ROOT / "notebooks" / "train.ipynb"
# How papermill ends if it was stopped (see papermill_plugin) or by a signal that does so: not of itself.
STOPPED = (130, *(-number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)))
GPUS = "CUDA_VISIBLE_DEVICES"
STARTING = 8  # seconds that papermill, a kernel and its imports take before a run trains


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if every run is finished, 1 if not, 2 for a mistake in the call, 130 if it was stopped."""
    parser = argparse.ArgumentParser(prog="python -m lib.runs", description=__doc__.splitlines()[0])
    parser.add_argument("study", help=f"one of {', '.join(names())}")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing the cores and the GPUs")
    parser.add_argument("--status", action="store_true", help="only say how far each run is")
    parser.add_argument("--submit", action="store_true", help="leave the runs to SLURM, one a task")
    parser.add_argument("--run", action="append", metavar="NAME", help="only this run, such as k9-p1-seed0")
    options = parser.parse_args(arguments)
    try:
        study = load(options.study)
        if options.run:
            study = only(study, options.run)
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 2
    if options.status:
        print(status(study))
        return 0
    try:
        if options.submit:
            return cluster.submit(study)
        if not options.run and (queued := cluster.queue(study)):  # with --run it may be one of them
            print(f"{study.name}: {len(queued)} runs are in SLURM's queue, so nothing is trained here", file=sys.stderr)
            return 1
    except (UserError, OSError) as error:
        print(error, file=sys.stderr)
        if options.submit:
            return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, signal.default_int_handler)
    try:
        return train_all(study, at_a_time(options.jobs))
    except ParameterError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last checkpoints", file=sys.stderr)
        return 130


def at_a_time(jobs: int) -> int:
    """How many of `jobs` runs train at a time: each needs a core of its own."""
    most = machine.cores()
    if jobs > most:
        print(f"JOBS={jobs}: taking {most}, as many as there are cores", file=sys.stderr)
    return max(1, min(jobs, most))


def only(study: Study, names: list[str]) -> Study:
    """The study with these runs alone; ParameterError for a run that it has not."""
    there = {run.name: run for run in study.runs}
    if unknown := [name for name in names if name not in there]:
        raise ParameterError(f"run={unknown[0]}: not in {study.name}, there are {', '.join(there)}")
    return dataclasses.replace(study, runs=tuple(run for run in study.runs if run.name in names))


def status(study: Study) -> str:
    """A table: each run of the study, how far it is, its test accuracy, its time and its place in a cluster's queue."""
    table, queued, rest = records.load(study), {}, []
    try:
        queued = cluster.queue(study)
    except cluster.ClusterError as error:
        rest.append(str(error))
    lines: list[tuple[str, ...]] = [("run", "status", "epochs", "test accuracy", "time", "queue")]
    for row, run in zip(table.itertuples(), study.runs, strict=True):
        who = holder(records.folder_of(study.name, row.run))
        state = "running" if who and row.status != "done" else row.status
        accuracy = f"{row.test_acc:.2f} %" if row.status == "done" else "-"
        seconds = span(row.seconds) if row.status == "done" else "-"
        lines.append((row.run, state, f"{row.epoch}/{row.epochs}", accuracy, seconds, queued.get(row.run, "-")))
        waiting = state in ("missing", "unfinished") and row.run not in queued
        if reason := row.reason if row.status in ("failed", "refused") else waiting and cluster.last_words(run):
            rest.append(f"{row.run}: {reason}")
    lines = lines if queued else [line[:-1] for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ["  ".join(word.ljust(width) for word, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    done = sum(table["status"] == "done")
    return "\n".join([*text, *rest, f"{done} of {len(table)} runs of {study.name} are finished"])


def train_all(study: Study, jobs: int) -> int:
    """Trains what is not finished, `jobs` at a time; 0 if in the end every run is."""
    table = records.load(study).set_index("run")
    for run in study.runs:
        if table.status[run.name] == "refused":
            print(table.reason[run.name], file=sys.stderr)
    refused = [run for run in study.runs if table.status[run.name] == "refused"]
    todo = [run for run in study.runs if table.status[run.name] not in ("done", "refused")]
    print(f"{study.name}: {study.purpose}")
    seconds: dict[str, float | None] = {}
    if todo:
        try:
            data = datasets.load(study.base)  # fetched or read once, with visible progress; only training needs it
            records.refuse_changed(study, data.digest)
        except ParameterError:
            raise
        except UserError as error:
            print(error, file=sys.stderr)
            return 1
        seconds = estimates(todo, table.epoch, jobs)
        print(announce(study, seconds, jobs), flush=True)
    failed: list[Run] = []
    places = shares(jobs if todo else 1)
    showing = progress.shown(study, seconds, jobs) if todo else contextlib.nullcontext()
    with showing, concurrent.futures.ThreadPoolExecutor(jobs) as pool, _stopping(pool):
        waiting = dict.fromkeys(todo)
        while waiting:
            free = [run for run in waiting if not holder(records.folder_of(study.name, run.name))]
            for run, tried in zip(free, pool.map(lambda run: train(study, run, places), free), strict=True):
                # The lock first: a process that exits in between has written its record.
                elsewhere = not tried or holder(records.folder_of(study.name, run.name))
                if (records.folder_of(study.name, run.name) / records.RESULT).exists():
                    progress.send(run=run.name, ended=True)
                    del waiting[run]
                elif not elsewhere:
                    failed.append(run)
                    del waiting[run]
            if waiting and not free:
                time.sleep(2)
    rest = failed + refused
    reasons = records.load(study).set_index("run").reason if rest else {}
    for run in rest:
        print(
            f"{run.name}: not finished. {reasons[run.name] or 'It was stopped; the same command goes on.'}",
            file=sys.stderr,
        )
    done = len(study.runs) - len(rest)
    print(f"{study.name}: {done} of {len(study.runs)} runs are finished")
    return 1 if rest else 0


def train(study: Study, run: Run, places: queue.SimpleQueue) -> bool:
    """Executes the training notebook for a run; False if it is left to another process, which trains it or has."""
    folder = records.folder_of(study.name, run.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"{folder}: {error.strerror}; nothing was trained", file=sys.stderr)
        return True
    who = holder(folder)
    with contextlib.ExitStack() as held:
        if who or not held.enter_context(claim(folder)):
            print(f"{run.name}: left to {who or holder(folder) or 'another process'}", flush=True)
            return False
        if not (folder / records.RESULT).exists():
            with contextlib.suppress(OSError):  # a folder where nothing can be written; the run itself says so
                (folder / records.FAILURE).unlink(missing_ok=True)
            place = places.get()
            any_gpu = run.params.device in ("auto", "cuda")  # cuda:1 counts in what this process sees
            own = {name: value for name, value in place.items() if name != GPUS or any_gpu}
            try:
                reason = execute(notebook_command(run, folder), {**kernel.environment(), **own})
            finally:
                places.put(place)
                if not _stopped.is_set():
                    progress.send(run=run.name, ended=True)
            if reason is not None and not any((folder / name).exists() for name in (records.RESULT, records.FAILURE)):
                records.note_failure(folder, run.params, reason)
        return True


def notebook_command(run: Run, folder: Path) -> list[str]:
    """papermill's command line for a run: every parameter, and where the executed notebook goes."""
    start = "import lib; from papermill.cli import papermill; papermill(prog_name='papermill')"
    command = [sys.executable, "-c", start, str(NOTEBOOK), str(folder / records.NOTEBOOK), "--cwd", str(ROOT)]
    command += ["-y", yaml.safe_dump(dataclasses.asdict(run.params)), "-k", kernel.NAME, "-l", kernel.LANGUAGE]
    command += ["--engine", kernel.ENGINE]
    return [*command, "--no-progress-bar", "--log-level", "ERROR", "--stdout-file", "-", "--stderr-file", "-"]


def share(jobs: int) -> dict[str, str]:
    """The environment that gives each of several runs its share of the cores."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(machine.cores() // jobs, int(asked) if asked.isdecimal() else machine.cores())
    return {"OMP_NUM_THREADS": str(max(1, threads))} if jobs > 1 else {}


def shares(jobs: int) -> queue.SimpleQueue:
    """What each of `jobs` runs at a time has in its environment, to take and put back: its cores and its GPU."""
    places, gpus = queue.SimpleQueue(), []
    if jobs > 1:
        with contextlib.suppress(concurrent.futures.BrokenExecutor, ImportError), process(jobs) as aside:
            gpus = aside.submit(machine.gpus).result()
    for number in range(jobs):
        places.put(share(jobs) | ({GPUS: gpus[number % len(gpus)]} if gpus else {}))
    return places


def process(jobs: int) -> concurrent.futures.Executor:
    """A process that goes when it is done: what it has taken of a GPU or of the memory is free for the runs."""
    return concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), take_share, (jobs,))


_executing: set[subprocess.Popen] = set()
_stopped = threading.Event()


def execute(command: list[str], environment: dict) -> str | None:
    """Runs a program to its end, or until this one is stopped; None if either is stopped, else its last words."""
    options: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stderr": subprocess.PIPE,
        "text": True,
        "errors": "replace",
    }
    if environment.get(kernel.PROGRESS):  # this program draws lines, above which the other's have to stand
        options["stdout"] = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, env=environment, **options) as process:
        _executing.add(process)
        if _stopped.is_set():  # a moment too late to be among those that were terminated
            process.terminate()
        said = ""
        printing = threading.Thread(target=print_all, args=(process.stdout or (),))
        printing.start()
        for line in process.stderr:
            sys.stderr.write(line)
            said = line.strip() or said
        printing.join()
        status = process.wait()
        _executing.discard(process)
    if _stopped.is_set() or status in STOPPED:
        return None
    if status == 0:
        return f"{NOTEBOOK.relative_to(ROOT)} ran to its end and left no record of this run: was it changed?"
    return re.sub(r"\x1b\[[\d;]*m", "", said)[:500] or f"papermill ended with status {status}"


def print_all(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, end="")


@contextlib.contextmanager
def _stopping(pool: concurrent.futures.Executor) -> Iterator[None]:
    """When this program is stopped, so are the runs that it has started: none is left to train unseen."""
    _stopped.clear()
    try:
        yield
    except KeyboardInterrupt:
        _stopped.set()
        pool.shutdown(wait=False, cancel_futures=True)
        for process in set(_executing):
            process.terminate()
        raise


def estimates(todo: Sequence[Run], epochs_done: pd.Series, jobs: int) -> dict[str, float | None]:
    """About how many seconds each run still takes on this machine, by name; None where that could not be measured."""
    whole: dict[tuple, float | None] = {}  # seconds of a run from its start, by what makes it slow
    found = {}
    with process(jobs) as aside:
        for run in todo:
            p = run.params
            kind = tuple({**p.computed(), "seed": 0, "lr": 0}.values())
            if kind not in whole:
                try:
                    whole[kind] = aside.submit(measured, run).result()
                except ParameterError:
                    raise
                except Exception:  # killed for want of memory, or a module is broken: the run will say so itself
                    whole[kind] = None
            seconds, left = whole[kind], float(1 - epochs_done[run.name] / p.epochs)
            found[run.name] = None if seconds is None else seconds * left + STARTING
    return found


def announce(study: Study, seconds: dict[str, float | None], jobs: int) -> str:
    """What will be trained and about how long it takes on this machine, from `estimates`."""
    known = [value for value in seconds.values() if value is not None]
    unknown = len(seconds) - len(known)
    about = (
        f"about {span(max([*known, sum(known) / jobs]))} in all" if known else "in a time that could not be measured"
    )
    without = f" without {unknown} of them, whose time could not be measured" if known and unknown else ""
    return f"{len(seconds)} of {len(study.runs)} runs to train, {about}{without}: {', '.join(seconds)}"


def take_share(jobs: int) -> None:
    """Gives this process one of several runs' share of the cores, before torch is imported; Ctrl-C is not for it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(share(jobs))


def measured(run: Run) -> float | None:
    """`estimate` of a run; a device that is not here is a ParameterError, which reaches a parent without torch."""
    from lib.train import TrainingError, estimate

    try:
        return estimate(run.params)
    except TrainingError as error:
        raise ParameterError(f"{run.name}: {error}") from None
