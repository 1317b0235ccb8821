"""One run, trained by several processes in turn, each of which comes to an end of its own: `attempts.py FILE.json`.

The file holds params (of the run), reports (the folder in the place of reports/), ends (what becomes of each process)
and leave_out (a piece of the state that no process takes from the checkpoint, or nothing). An end is
    ["steps", n, share]     SIGKILL when n steps are done and `share` of another step's time has passed
    ["write", n], ["flush", n], ["first rename", n], ["second rename", n], ["renamed", n]
                            SIGKILL in the n-th save of a checkpoint: half of the file written, all of it but not yet
                            flushed, before the last one becomes the previous, between the two renames, after them
    ["fill", what, n]       the disk becomes full just before the n-th write of checkpoint.pt or of result.json
    ["memory", megabytes]   from its first step on the process may take no more than that beyond what it has
    ["signal", number, n]   it is sent that signal when n steps are done
    ["end"]                 nothing
For each process it prints a line of JSON: its status as subprocess has it, the steps that it did, what it said.
The processes are forked from this one, which has imported what they need: twenty starts cost seconds, not minutes.
"""

import json
import os
import resource
import select
import signal
import sys
import tempfile
import time
from pathlib import Path

from lib import checkpoint, files, records, train
from lib.data.datasets import Dataset
from lib.data.download import cifar10
from lib.params import Params
from lib.runs import run

TEST_IMAGES = 500


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def nth(function, n: int, before=None):
    """The function, with `before` called in front of its n-th call."""
    calls = iter(range(1, 10**9))

    def counted(*arguments, **named):
        if next(calls) == n:
            before()
        return function(*arguments, **named)

    return counted


def arrange(end: list, folder: Path) -> None:
    """Prepares this process for its end."""
    match end:
        case ["write", n]:
            # The content arrives in two halves; between them the process dies.
            write_bytes = files.write_bytes

            def halved(path, content, keep=None):
                _, half = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=files.PART)
                Path(half).write_bytes(content[: len(content) // 2])
                die()

            at = nth(write_bytes, n, lambda: setattr(checkpoint, "write_bytes", halved))
            checkpoint.write_bytes = lambda *words, **named: at(*words, **named)
        case ["flush", n]:
            in_save("fsync", 2 * n - 1)  # a save flushes the file, then the folder
        case ["renamed", n]:
            in_save("fsync", 2 * n)
        case ["first rename", n]:
            in_save("replace", 2 * n)  # the first save of all has nothing to keep, so one rename
        case ["second rename", n]:
            in_save("replace", 2 * n + 1)
        case ["fill", what, n]:
            fill = lambda: fill_disk(folder)  # noqa: E731
            if what == records.CHECKPOINT:
                checkpoint.save = nth(checkpoint.save, n, fill)
            else:
                write_json = records.write_json
                at = nth(write_json, n, fill)
                records.write_json = lambda path, values: (at if path.name == what else write_json)(path, values)
        case ["memory", megabytes]:
            # At the first step: torch imports parts of itself before it, and has errors of its own for that.
            train.train_step = nth(train.train_step, 1, lambda: limit_memory(megabytes))
        case ["signal", number, n]:
            train.train_step = nth(train.train_step, n + 1, lambda: os.kill(os.getpid(), number))


def in_save(name: str, n: int) -> None:
    """SIGKILL before the n-th call of os.NAME among those that saving checkpoints makes."""
    function, save = getattr(os, name), checkpoint.save
    deadly = nth(function, n, die)

    def watched(*arguments):
        setattr(os, name, deadly)
        try:
            return save(*arguments)
        finally:
            setattr(os, name, function)

    checkpoint.save = watched


def fill_disk(folder: Path) -> None:
    """Takes what is left of the disk, so that not one more byte fits."""
    with open(folder.parents[2] / "ballast", "wb", buffering=0) as file:
        try:
            while True:
                file.write(b"\0" * 4096)
        except OSError:
            pass


def limit_memory(megabytes: int) -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + megabytes * 2**20,) * 2)


def attempt(config: dict, end: list, report: int) -> None:
    """The child: trains until its end; writes a byte to `report` after each step."""
    records.REPORTS = Path(config["reports"])
    p = Params.of(**config["params"])
    arrays = {name: array[:TEST_IMAGES] if name.startswith("test") else array for name, array in CIFAR.items()}
    run.datasets.load = lambda p: Dataset(**arrays)
    step = train.train_step

    def counted(*arguments):
        loss = step(*arguments)
        os.write(report, b".")
        return loss

    train.train_step = counted
    arrange(end, records.run_folder(p))
    if piece := config.get("leave_out"):
        load = checkpoint.load

        def without(folder):
            state = load(folder)
            if state is not None:
                state[piece]["state"] = {}  # the optimizer's moments
            return state

        checkpoint.load = without
    try:
        run.run(p, say=lambda text: None)
    except run.UserError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    except BaseException:
        import traceback

        traceback.print_exc()
        os._exit(3)


def follow(config: dict, end: list) -> dict:
    """Forks a child, brings it to its end, and says how it ended."""
    reading, writing = os.pipe()
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            os.dup2(errors.fileno(), 2)
            os.close(reading)
            attempt(config, end, writing)
            os._exit(0)
        os.close(writing)
        steps, begun, took = 0, time.monotonic(), 0.0
        while os.read(reading, 1):
            steps += 1
            begun, took = time.monotonic(), time.monotonic() - begun
            if end[0] == "steps" and steps == end[1]:
                select.select([reading], [], [], end[2] * took)  # but not beyond the next step
                os.kill(child, signal.SIGKILL)
                break
        _, status = os.waitpid(child, 0)
        os.close(reading)
        errors.seek(0)
        says = errors.read().decode().strip()
    return {"end": end, "status": os.waitstatus_to_exitcode(status), "steps": steps, "says": says}


if __name__ == "__main__":
    CIFAR = cifar10()
    plan = json.loads(Path(sys.argv[1]).read_text())
    for how in plan["ends"]:
        print(json.dumps(follow(plan, how)), flush=True)
