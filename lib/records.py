"""Run folders under reports/: their names, what is written there and how it is read back as a DataFrame. No torch.

reports/<study>/runs/<run>/result.json        the record; written last, so it exists exactly if the run finished
                           arrays.npz         logits of the test images, what the network looks like inside
                           weights.safetensors    the selected weights (in git for seed 0 of a published study)
                           progress.json      how far an unfinished run has come (not in git)
                           failure.json       why the last attempt stopped (not in git)
                           checkpoint*.pt, train.ipynb (not in git)
"""

import collections
import contextlib
import datetime
import io
import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib import study as studies
from lib.files import write_bytes
from lib.params import UNUSED, Params, UserError, run_name
from lib.study import ROOT, Study, shown

REPORTS = studies.folder("CONVMIXER_REPORTS", "reports")  # elsewhere it is another disk, or reports/published
PUBLISHED = ROOT / "reports" / "published"  # our own records, in git
SCHEMA = 2
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")  # CIFAR-10's order
# Per channel, over the 50,000 training images, of values in 0..1: the mean; the standard deviation of all pixels; and
# the mean of the images' own deviations, which much code in circulation (the paper's notebooks too) divides by.
MEAN = (0.49139968, 0.48215841, 0.44653091)
STD = {"pixels": (0.24703223, 0.24348513, 0.26158784), "images": (0.2023, 0.1994, 0.2010)}
TEST_IMAGES = 10_000  # of CIFAR-10


class Normalisation(NamedTuple):
    """What images are normalised by: mean and deviation of each channel, of values in 0..1."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


CIFAR10_NORMALISATION = Normalisation(MEAN, STD["pixels"])

RESULT, ARRAYS, PROGRESS, FAILURE = "result.json", "arrays.npz", "progress.json", "failure.json"
BENCH, BENCH_SCHEMA = "bench", 3  # the folder, a file a processor
NOTEBOOK, WEIGHTS, CHECKPOINT = "train.ipynb", "weights.safetensors", "checkpoint.pt"

# What a record must hold for the tables and figures; anything else in it is for the reader.
REQUIRED = {
    "run": str, "study": str, "params": dict, "fingerprint": str, "history": list, "selected_epoch": int,
    "test_acc": float, "test_loss": float, "last_test_acc": float, "per_class_acc": dict, "seconds": float,
    "images_per_second": float, "peak_memory_mb": float, "parameters": int, "forward_macs": int,
    "data_digest": str, "environment": dict,
}  # fmt: skip

# Of a finished run's record in the table that `load` makes.
NUMBERS = (
    "test_acc", "test_loss", "last_test_acc", "seconds", "images_per_second", "peak_memory_mb", "parameters",
    "forward_macs",
)  # fmt: skip
OF_THE_HISTORY = ("val_acc", "fastest_images_per_second")  # what `load` finds there
COLUMNS = (
    "run", "settings", "seed", "arch", "kernel", "patch", "lr", "epochs", "params", "fingerprint", "status", "reason",
    "epoch", "record", *NUMBERS, *OF_THE_HISTORY,
)  # fmt: skip
HISTORY = ("epoch", "lr", "loss", "train_loss", "train_acc", "seconds", "images_per_second")


class RecordError(UserError):
    """A record that cannot be read or used; names the file."""


def study_folder(study: str) -> Path:
    """Where a study's page, tables, figures and runs lie."""
    return REPORTS / study


def folder_of(study: str, run: str) -> Path:
    """Where a run's files lie; the one place that decides it."""
    return study_folder(study) / "runs" / run


def run_folder(params: Params) -> Path:
    """The same for a run that only its parameters name."""
    return folder_of(params.study, run_name(params, studies.base_params(params.study)))


def write_json(path: Path, values: dict) -> None:
    """Writes a JSON file atomically; a NaN or infinity in it is an error, since no reader agrees on them."""
    write_bytes(path, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed .npz atomically; the same arrays give the same bytes."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # the stubs take every name for an option
    write_bytes(path, buffer.getvalue())


def read_json(path: Path) -> dict:
    """The object in a JSON file; RecordError names the file and what is wrong with it."""

    def refuse(constant: str):
        raise ValueError(f"holds {constant}")

    try:
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    except (OSError, ValueError) as error:
        raise RecordError(f"{shown(path)}: not readable as a record ({error})") from None
    if not isinstance(values, dict):
        raise RecordError(f"{shown(path)}: not readable as a record (not an object)")
    return values


def read_result(path: Path) -> dict:
    """A finished run's record, checked; RecordError names the file."""
    values = read_json(path)
    if values.get("schema") != SCHEMA:
        raise RecordError(
            f"{shown(path)}: schema {values.get('schema')}, this code reads {SCHEMA}; train the run again"
        )
    for name, kind in REQUIRED.items():
        kinds = (int, float) if kind is float else kind
        if not isinstance(values.get(name), kinds):
            raise RecordError(f"{shown(path)}: {name} is missing or no {kind.__name__}")
    problem = _impossible(values)
    if problem:
        raise RecordError(f"{shown(path)}: {problem}")
    return values


def read_arrays(record: dict, folder: Path | None = None) -> dict[str, np.ndarray]:
    """The arrays of a finished run, by name; RecordError if they are not there or not this record's.

    logits (N, classes), float16, and labels (N,) of the test images, 10,000 of CIFAR's; the others are those of
    `explore.look_inside`. `folder`: where the record lies, if not in its own place under reports/.
    """
    path = (folder or folder_of(record["study"], record["run"])) / ARRAYS
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        found = accuracy(arrays["logits"], arrays["labels"])
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise RecordError(f"{shown(path)}: not readable ({error})") from None
    # Written before the record: a forced training that was killed in between leaves its own beside the old record.
    if abs(found - record["test_acc"]) > 1e-9:
        raise RecordError(f"{shown(path)}: not the logits of the record beside it; train the run again")
    return arrays


def with_weights(reports: Path) -> list[tuple[Path, dict]]:
    """Folder and record of every run under `reports` whose weights lie beside its record, in the order of the names."""
    folders = sorted(path.parent for path in reports.glob(f"*/runs/*/{WEIGHTS}"))
    return [(folder, read_result(folder / RESULT)) for folder in folders]


def val_acc(record: dict) -> float:
    """Validation accuracy (%) of the weights that a run kept; NaN where no image was held out."""
    value = record["history"][record["selected_epoch"] - 1].get("val_acc")
    return np.nan if value is None else value


def classes(record: dict) -> tuple[str, ...]:
    """The names of a run's classes, by label; older records have none, since all of them are CIFAR-10's."""
    return tuple(record.get("classes", CLASSES))


def normalisation(record: dict) -> Normalisation:
    """What a run's images are normalised by; older records are CIFAR-10's, as above."""
    if given := record.get("normalisation"):
        return Normalisation(tuple(given["mean"]), tuple(given["std"]))
    return Normalisation(MEAN, STD[Params.of(**record["params"]).std])


def test_images(record: dict) -> int:
    """How many images a run was tested on; older records are CIFAR-10's, as above."""
    return record.get("test_images", TEST_IMAGES)


def network_name(record: dict) -> str:
    """A run's network as people call it: ConvMixer-32/4, k=9, p=2."""
    return Params.of(**record["params"]).network


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Per cent of images whose label has the largest logit (the first of equals): logits (N, classes), labels (N,)."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(f"logits {logits.shape} and labels {labels.shape} do not belong together")
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)


def _impossible(values: dict) -> str:
    """Why a complete record is impossible (an accuracy of 120 %, say), or an empty text."""
    history = values["history"]
    if not history:
        return "history is empty"
    for entry in history:
        if not isinstance(entry, dict) or not all(_number(entry.get(name)) for name in HISTORY):
            return f"an entry of history lacks one of {', '.join(HISTORY)}"
        if not all(value is None or _number(value) for value in entry.values()):
            return "an entry of history holds something else than numbers"
    if not 1 <= values["selected_epoch"] <= len(history):
        return f"selected_epoch is {values['selected_epoch']} of {len(history)}"
    accuracies = [values["test_acc"], values["last_test_acc"], *values["per_class_acc"].values()]
    accuracies += [entry[name] for entry in history for name in entry if name.endswith("_acc")]
    if not all(value is None or (_number(value) and 0 <= value <= 100) for value in accuracies):
        return "an accuracy is not between 0 and 100"
    return ""


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def load(study: Study) -> pd.DataFrame:
    """Every run of a study, one row each, in the study's order: finished or not, none left out.

    Columns: run, settings (tuple), seed, arch, kernel and patch (NaN where the network has none), lr, epochs, params (a
    dict), fingerprint, status, reason, epoch (the last finished one), and of finished runs record (the whole dict)
    with test_acc, test_loss, last_test_acc, val_acc (of the selected epoch; accuracies in per cent), seconds,
    images_per_second (the median of its epochs), fastest_images_per_second (of one epoch: what other work on the
    machine disturbs least), peak_memory_mb, parameters, forward_macs.

    status is done, unfinished (trained in part), failed, missing, or refused: a record that is there but cannot be
    used, because it is unreadable, incomplete, of other parameters or not comparable with the study's others; `reason`
    says why in one line.
    """
    return pd.DataFrame(_comparable([_row(study, run) for run in study.runs]), columns=list(COLUMNS))


def _comparable(rows: list[dict]) -> list[dict]:
    """The rows, with those refused that cannot stand beside the others: of other images, or worked in another type.

    A folder of pictures may have changed between two runs: those count that the run finished last has had. A machine
    without bfloat16 works in float32 instead: of what runs were to work in, the type that most have worked in counts.
    """
    done = [row for row in rows if row["status"] == "done"]
    last = max(done, key=lambda row: str(row["record"].get("finished")))["record"]["data_digest"] if done else ""
    worked = collections.defaultdict(collections.Counter)
    for row in done:
        worked[row["params"]["dtype"]][worked_in(row["record"])] += 1
    for row in done:
        most = worked[row["params"]["dtype"]].most_common(1)[0][0]
        digest, dtype = row["record"]["data_digest"], worked_in(row["record"])
        if digest != last:
            fault = f"trained on other images ({digest}) than the run that was finished last ({last})"
            mend = "move the folder away to train it anew"
        elif dtype != most:
            fault = f"worked in {dtype}, most runs of the study in {most}"
            mend = f"move the folder away and train it where there is {most}, or give all of them one dtype"
        else:
            continue
        path = shown(folder_of(row["record"]["study"], row["run"]))
        nothing = {"record": None, **dict.fromkeys((*NUMBERS, *OF_THE_HISTORY), np.nan)}
        row |= {"status": "refused", "reason": f"{path}: {fault}; {mend}", **nothing}
    return rows


def worked_in(record: dict) -> str:
    """The type that a run worked in; records from before this was kept worked in the one that was asked for."""
    return record["environment"].get("dtype", record["params"]["dtype"])


def refuse_changed(study: Study, digest: str) -> None:
    """RecordError if a folder's images are no longer those of the study's finished runs, before more are trained.

    Of all its runs, also where `study` has been narrowed to some.
    """
    for record in load(studies.load(study.name))["record"].dropna():
        if record["data_digest"] != digest:
            raise RecordError(
                f"{study.base.dataset}: holds other images than {record['run']} was trained on "
                f"({record['data_digest']} -> {digest}): bring them back, or move "
                f"{shown(study_folder(study.name) / 'runs')} away to train on these"
            )


def _row(study: Study, run: studies.Run) -> dict:
    params, folder = run.params, folder_of(study.name, run.name)
    row = {
        "run": run.name, "settings": run.settings, "seed": params.seed, "arch": params.arch,
        **{name: np.nan if name in UNUSED[params.arch] else getattr(params, name) for name in ("kernel", "patch")},
        "lr": params.lr, "epochs": params.epochs, "params": params.computed(),
        "fingerprint": params.fingerprint, "status": "missing", "reason": "", "epoch": 0, "record": None,
    }  # fmt: skip
    row |= dict.fromkeys((*NUMBERS, *OF_THE_HISTORY), np.nan)
    try:
        if (folder / RESULT).exists():
            record = read_result(folder / RESULT)
            refuse_other(record, params, folder / RESULT)
            row |= {"status": "done", "record": record, "epoch": len(record["history"])}
            row |= {name: record[name] for name in NUMBERS}
            row["val_acc"] = val_acc(record)
            row["fastest_images_per_second"] = max(entry["images_per_second"] for entry in record["history"])
        elif failure := _of_this_run(folder / FAILURE, params):
            row |= {"status": "failed", "reason": str(failure.get("reason")), "epoch": failure.get("epoch", 0)}
        elif progress := _of_this_run(folder / PROGRESS, params):
            row |= {"status": "unfinished", "epoch": len(progress.get("history", []))}
            row["reason"] = f"at epoch {row['epoch']} of {params.epochs}"
    except RecordError as error:
        row |= {"status": "refused", "reason": str(error)}
    return row


def note_failure(folder: Path, params: Params, reason: str) -> None:
    """Leaves the reason for the report and for `make status`; an error here, as on a full disk, is ignored."""
    epoch = len(_of_this_run(folder / PROGRESS, params).get("history", []))
    failure = {"reason": reason, "epoch": epoch, "fingerprint": params.fingerprint, "when": now()}
    with contextlib.suppress(OSError):
        write_json(folder / FAILURE, failure)


def _of_this_run(path: Path, params: Params) -> dict:
    """What an unfinished run has left; empty where there is nothing, or nothing that can be read, or it is of other
    parameters. Only words depend on it: the run goes on from its checkpoint.
    """
    with contextlib.suppress(RecordError):
        values = read_json(path)
        epoch, history = values.get("epoch", 0), values.get("history", [])
        if values.get("fingerprint") == params.fingerprint and isinstance(epoch, int) and isinstance(history, list):
            return values
    return {}


def refuse_other(record: dict, params: Params, path: Path) -> None:
    """RecordError with the differences if `record` was trained with other parameters or another version of the code."""
    if changes := params.unlike(record):
        raise RecordError(
            f"{shown(path)}: made with other parameters ({changes}); "
            "give them again, or move the folder away to train anew"
        )


def best_test(record: dict) -> float:
    """The best test accuracy (%) of any epoch, of a run that watched it: a leak."""
    return max(entry["test_acc"] for entry in record["history"])


def machine_name(record: dict) -> str:
    """What people call the machine of a run's record or of a bench: its GPU, or its processor and the threads used."""
    environment = record["environment"]
    if environment.get("gpu"):
        return environment["gpu"]
    threads = environment.get("threads", record.get("threads", "?"))
    threads = f"{threads} thread{'' if threads == 1 else 's'}"
    more = ", ".join(filter(None, [environment.get("vectors"), threads]))
    return f"{environment.get('cpu') or 'A processor'} ({more})"


def benches() -> list[dict]:
    """What lib/runs/bench.py measured on each processor, the newest first; none that cannot be read."""
    found = []
    for path in (REPORTS / BENCH).glob("*.json"):
        with contextlib.suppress(RecordError):
            found.append(read_json(path))
    found = [bench for bench in found if bench.get("schema") == BENCH_SCHEMA]
    return sorted(found, key=lambda bench: str(bench.get("made")), reverse=True)


def now() -> str:
    """The time in UTC, to the second, as ISO 8601."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def span(seconds: float) -> str:
    """A time for people: 45 s, 12 min, 3 h 20 min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
