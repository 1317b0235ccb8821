"""One run from parameters to record: whether it is finished, what is written when it is, and when it fails."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch

from lib import checkpoint, explore, files, machine, records
from lib.data import datasets
from lib.data.datasets import Dataset
from lib.model import count_parameters, forward_macs, network
from lib.native import layers
from lib.params import NUMERICS, Params, UserError, run_name
from lib.records import span
from lib.runs import progress
from lib.runs.lock import own
from lib.study import base_params
from lib.train import Trained, TrainingError, estimate, fit, pick_device


def run(p: Params, say: Callable[[str], None] = print) -> dict:
    """Trains a run, or goes on with it, or does nothing if it is finished; returns its record (see records.py).

    Safe to call again after any interruption. Raises UserError.
    """
    folder = records.run_folder(p)
    name = folder.name

    def say_of_run(text: str) -> None:
        say(f"{name}  {text}")

    pick_device(p.device)  # one that is not there is an error before anything is written
    with own(folder):
        files.remove_parts(folder)
        path = folder / records.RESULT
        if path.exists():
            record = records.read_result(path)
            records.refuse_other(record, p, path)  # nothing is mixed
            checkpoint.remove(folder)  # where a kill left no time for it
            if not p.force:
                say(f"{name}: finished before, {record['test_acc']:.2f} % on the test set, nothing to train")
                return record
        need_room(p, folder)
        started = records.now()
        (folder / records.FAILURE).unlink(missing_ok=True)
        try:
            data = datasets.load(p)  # not a notebook's, which may have been changed since: the record names its images
            with progress.watched(name, say_of_run) as show:
                trained = fit(p, data, folder, say_of_run, show)
            record = make_record(p, data, trained, started)
            write_record(folder, record, trained, data)
        except Exception as error:
            fault = readable(error, p, folder)
            words = str(fault) if isinstance(fault, UserError) else f"{type(fault).__name__}: {fault}"
            records.note_failure(folder, p, words)
            if fault is error:
                raise
            raise fault from None
        say_of_run(f"done: {record['test_acc']:.2f} % on the test set, {span(record['seconds'])}")
        return record


def need_room(p: Params, folder: Path) -> None:
    """TrainingError before training if the run's files would not fit on the disk."""
    with torch.device("meta"):
        weights = 4 * count_parameters(network(p))
    # Weights, two moments and the best weights, in two checkpoints and a third while it is written.
    need = 20e6 + 3 * 4 * weights
    free = shutil.disk_usage(folder).free
    if free < need:
        raise TrainingError(f"{folder}: {free / 1e6:.0f} MB free, {need / 1e6:.0f} MB needed; nothing was trained")


def make_record(p: Params, data: Dataset, trained: Trained, started: str) -> dict:
    """The record of a finished run: whatever a table, a figure or a reader may ask."""
    labels = data.test_labels
    right = trained.test["logits"].argmax(1) == labels
    times = [entry["seconds"] for entry in trained.state.history]
    rates = [entry["images_per_second"] for entry in trained.state.history]
    device = next(trained.state.model.parameters()).device
    return {
        "schema": records.SCHEMA,
        "run": run_name(p, base_params(p.study)),
        "study": p.study,
        "params": {name: getattr(p, name) for name in p.__dataclass_fields__},
        "fingerprint": p.fingerprint,
        "numerics": NUMERICS,
        "history": trained.state.history,
        "selected_epoch": trained.selected_epoch,
        "test_acc": trained.test["acc"],
        "test_loss": trained.test["loss"],
        "last_test_acc": trained.last_test["acc"],
        "last_test_loss": trained.last_test["loss"],
        "per_class_acc": {c: 100 * float(right[labels == i].mean()) for i, c in enumerate(data.classes)},
        "seconds": round(trained.state.seconds, 3),
        "seconds_per_epoch": float(np.median(times)),
        "images_per_second": float(np.median(rates)),
        "peak_memory_mb": round(trained.state.memory, 1),
        "parameters": count_parameters(trained.state.model),
        "forward_macs": forward_macs(trained.state.model),
        "data_digest": data.digest,
        "classes": list(data.classes),
        "normalisation": {name: list(values) for name, values in data.normalisation._asdict().items()},
        "train_images": p.train_size or len(data.train_labels) - p.val_size,
        "val_images": p.val_size,
        "test_images": len(labels),
        "checkpoints": trained.state.checkpoints,
        "resumed": trained.state.resumed,
        "started": started,
        "finished": records.now(),
        "environment": {
            **machine.environment(),
            "device": device.type,
            "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
            "threads": torch.get_num_threads(),
            "native": trained.native,
            "native_code": layers.code_name() if trained.native is True else None,
            "dtype": trained.dtype,
            "bfloat16_products": trained.products,
            "tf32": trained.tf32,
        },
    }


def write_record(folder: Path, record: dict, trained: Trained, data: Dataset) -> None:
    """Weights and arrays first, result.json last; then what only an unfinished run needs is taken away."""
    weights = {name: w.contiguous().cpu() for name, w in trained.state.model.state_dict().items()}
    files.write_bytes(folder / records.WEIGHTS, safetensors.torch.save(weights))
    inside = explore.look_inside(trained.state.model, data.test_images, data.normalisation)
    outputs = {"logits": trained.test["logits"], "labels": data.test_labels}
    records.write_arrays(folder / records.ARRAYS, outputs | inside)
    records.write_json(folder / records.RESULT, record)
    (folder / records.PROGRESS).unlink(missing_ok=True)
    checkpoint.remove(folder)


def readable(error: Exception, p: Params, folder: Path) -> Exception:
    """Known faults of the machine as a TrainingError of one line; anything else as it is."""
    text = str(error)
    full = ("allocate memory", "out of memory", "ALLOC_FAILED")  # PyTorch's words on a processor, a GPU, in cuDNN
    if isinstance(error, MemoryError) or any(words in text for words in full):
        return TrainingError(
            f"out of memory: lower batch_size ({p.batch_size}), dim ({p.dim}) or depth ({p.depth}), "
            f"raise patch ({p.patch}), or set dtype=bfloat16"
        )
    if isinstance(error, OSError) and error.errno is not None:
        return TrainingError(
            f"{error.filename or folder}: {error.strerror}; what was saved before is untouched, "
            "mend that and give the same command again"
        )
    return error


def announce(p: Params) -> str:
    """What will be trained, how long that takes on this machine, and how to ask for less."""
    folder = records.run_folder(p)
    name = f"{p.study}/{folder.name}: {p.network}, {p.epochs} epochs"
    if (folder / records.RESULT).exists() and not p.force:
        return f"{name}; there is a record of it"
    seconds = estimate(p)
    if seconds is None:
        return f"{name}; how long it takes here could not be measured"
    text = f"{name}; about {span(seconds)} here on {pick_device(p.device)} if nothing else runs"
    if seconds > 1800:
        text += (
            "\nSmaller: -f params/studies/smoke.yaml, or -p patch 4, -p epochs 3, -p train_size 5000, "
            "-p dtype bfloat16. It can be stopped at any time: the same command goes on."
        )
    return text


def one_line_errors() -> None:
    """In a notebook: an error that the user can mend is shown as its one line, without a traceback."""
    from IPython import get_ipython

    def show(shell, kind, error, trace, tb_offset=None):
        line = [f"{kind.__name__}: {error}"]
        shell._showtraceback(kind, error, line)
        return line

    get_ipython().set_custom_exc((UserError,), show)
