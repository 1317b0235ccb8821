"""Studies and records made up for tests, in temporary folders only; the numbers are invented and deterministic."""

import dataclasses
import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import yaml

from lib import records
from lib import study as studies
from lib.params import NUMERICS
from lib.report import published
from lib.study import Study

SETTINGS = [
    *(f"kernel-{kernel}" for kernel in published.KERNELS), *(f"patch-{patch}" for patch in published.PATCHES),
    "lr-1e-4", "lr-1e-3", "lr-1e-2",
]  # fmt: skip
LABELS = np.repeat(np.arange(10, dtype=np.uint8), 1000)
DATA = SimpleNamespace(digest="sha256:" + "0" * 64)  # what datasets.load would give, as far as records tell
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def place(monkeypatch, folder: Path) -> Path:
    """Makes `folder` the home of params/ and reports/ for this test."""
    if not (folder / "params").exists():
        shutil.copytree(studies.PARAMS, folder / "params")
    (folder / "reports").mkdir(exist_ok=True)
    monkeypatch.setattr(studies, "PARAMS", folder / "params")
    monkeypatch.setattr(records, "REPORTS", folder / "reports")
    monkeypatch.setattr(studies, "ROOT", folder)
    return folder


def study(
    name: str = "made", seeds=(0,), settings=SETTINGS, purpose="A study made up for a test.", **overrides
) -> Study:
    """Writes params/studies/NAME.yaml and reads it back as a Study."""
    values = {"study": name, "settings": list(settings), "seeds": list(seeds), "dim": 64, "depth": 4, "epochs": 12}
    text = f"# {purpose}\n{yaml.safe_dump(values | overrides)}"
    (studies.PARAMS / "studies" / f"{name}.yaml").write_text(text, encoding="utf-8")
    return studies.load(name)


def fill(study: Study, skip=(), order: float = 1.0, leak: bool = False) -> None:
    """Writes a record for every run of a study whose name is not in `skip`.

    order: the spread of the settings' accuracies, negative to turn the predicted trends around.
    """
    for run in study.runs:
        if run.name not in skip:
            write(study, run, record(run, order, leak))


def runs(study: Study, **how) -> pd.DataFrame:
    """All runs of a study as `records.load` gives them, after `fill`."""
    fill(study, **how)
    return records.load(study)


def write(study: Study, run, values: dict) -> Path:
    """Writes one record and its arrays; returns the run's folder."""
    folder = folder_of(study, run)
    folder.mkdir(parents=True, exist_ok=True)
    records.write_json(folder / records.RESULT, values)
    n = len(records.classes(values))
    labels = LABELS if n == 10 else np.arange(len(LABELS), dtype=np.uint8) % n
    logits = np.eye(n, dtype=np.float16)[_predictions(values["test_acc"], run.name, labels, n)]
    records.write_arrays(folder / records.ARRAYS, {"logits": 4 * logits, "labels": labels, **inside(run.params)})
    return folder


def inside(p) -> dict[str, np.ndarray]:
    """What `explore.look_inside` leaves, invented: a receptive field that widens with the kernel."""
    random = np.random.default_rng(p.kernel)
    y, x = np.indices((32, 32)) - 15.5
    arrays = {"receptive_field": np.exp(-np.hypot(x, y) / p.kernel).astype(np.float32)}
    if p.arch == "convmixer":
        shapes = {"patch_embedding": (p.dim, 3, p.patch, p.patch), "depthwise": (3, p.dim, p.kernel, p.kernel)}
        arrays |= {name: random.normal(size=shape).astype(np.float16) for name, shape in shapes.items()}
        arrays["blocks"] = np.array([0, p.depth // 2, p.depth - 1], np.uint8)
    return arrays


def folder_of(study: Study, run) -> Path:
    """Where a run of a made-up study lies."""
    return records.study_folder(study.name) / "runs" / run.name


def stop(study: Study, run, how: str, **values) -> None:
    """Leaves a run failed (how=failure) or unfinished (how=progress)."""
    folder = folder_of(study, run)
    folder.mkdir(parents=True, exist_ok=True)
    name = {"failure": records.FAILURE, "progress": records.PROGRESS}[how]
    (folder / name).write_text(json.dumps({"fingerprint": run.params.fingerprint, **values}))


def classes(p) -> tuple[str, ...]:
    """The classes of a data set: CIFAR-10's, a hundred, or those of a folder of three."""
    if p.dataset == "cifar10":
        return CLASSES
    return tuple(f"class {i}" for i in range(100)) if p.dataset == "cifar100" else ("cat", "dog", "owl")


def record(run, order: float = 1.0, leak: bool = False) -> dict:
    """A record as the training writes it, with an invented learning curve; CIFAR-10's as it was before other data."""
    p, draw = run.params, np.random.default_rng(_number(run.name))
    rate = {1e-4: 12.0, 1e-2: 2.0}.get(p.lr, 0.0)
    top = 84 + order * (0.5 * (p.kernel - 9) - 2.2 * (p.patch - 1)) - rate + 0.25 * draw.normal()
    history = []
    for epoch in range(1, p.epochs + 1):
        here = top - 45 * np.exp(-3.5 * epoch / p.epochs) + 0.3 * draw.normal()
        loss = float(2.3 - 2 * here / 100)
        history.append({
            "epoch": epoch, "lr": p.lr * (1 - (epoch - 1) / p.epochs), "loss": loss + 0.6, "train_loss": loss,
            "train_acc": round(float(here) + 1.5, 2), "val_loss": loss + 0.08, "val_acc": round(float(here), 2),
            "seconds": 30.0 + draw.normal(), "images_per_second": 1500.0 * p.patch**2 / (1 + p.kernel / 9),
        } | ({"test_loss": loss + 0.1, "test_acc": round(float(here) - 0.4, 2)} if leak else {}))  # fmt: skip
    best = int(np.argmax([epoch["val_acc"] for epoch in history]))
    test = round(history[best]["val_acc"] - 0.4, 2)
    speed = history[0]["images_per_second"]
    seconds = p.epochs * 50_000 / speed
    return {
        "schema": records.SCHEMA, "run": run.name, "study": p.study, "params": dataclasses.asdict(p),
        "fingerprint": p.fingerprint, "numerics": NUMERICS, "history": history, "selected_epoch": best + 1,
        "test_acc": test, "test_loss": history[best]["val_loss"], "last_test_acc": round(test - 0.11, 2),
        "last_test_loss": history[-1]["val_loss"], "per_class_acc": dict.fromkeys(classes(p), test),
        "seconds": seconds, "seconds_per_epoch": seconds / p.epochs, "images_per_second": speed,
        "peak_memory_mb": 900.0 / p.patch, "parameters": 50_000 + 256 * p.kernel**2,
        "forward_macs": 30_000_000 // p.patch**2, "data_digest": DATA.digest,
        "train_images": p.train_images or 45_000,
        "val_images": 5_000, "checkpoints": 3, "resumed": 0, "started": "2026-01-01T00:00:00+00:00",
        "finished": "2026-01-01T01:00:00+00:00",
        "environment": {
            "python": "3.12.0", "torch": "0.0-made", "torchvision": "0.0-made", "timm": "0.0-made",
            "numpy": "0.0-made", "pillow": "0.0-made", "system": "Linux made-up", "cpu": "Made-Up Processor <1>",
            "gpu": None, "threads": 2, "cores": 2, "device": "cpu", "native": True, "commit": "0" * 40, "dirty": False,
        },
    } | ({} if p.dataset == "cifar10" else {"classes": list(classes(p)), "test_images": len(LABELS)})  # fmt: skip


def _predictions(accuracy: float, name: str, labels: np.ndarray, classes: int) -> np.ndarray:
    """Classes (10000,) with exactly this accuracy (%), wrong on images that depend little on the name."""
    predicted, wrong = labels.copy(), round((100 - accuracy) * 100)
    noise = np.random.default_rng(0).random(10_000) + 0.2 * np.random.default_rng(_number(name)).random(10_000)
    where = np.argsort(noise)[:wrong]
    predicted[where] = (predicted[where] + 1) % classes
    return predicted


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])


def bench(**images_per_second) -> dict:
    """What `make bench` records, of one network."""
    names = {"default": "PyTorch, defaults", "ours": "ours, bfloat16"}
    variants = {
        names.get(name, name): {"images_per_second": speed, "peak_memory_mb": 100.0}
        for name, speed in images_per_second.items()
    }
    network = {"name": "256/8 k=9 p=1", "dim": 256, "depth": 8, "kernel": 9, "patch": 1, "variants": variants}
    network |= {
        "tuned": "channels_last",
        "ours": "ours, bfloat16",
        "over_default": 12.0,
        "over_tuned": 4.0,
        "float32_over_default": None,
        "float32_over_tuned": None,
        "share_of_bound": 0.6,
        "share_of_bound_bf16": 0.5,
    }
    epochs = [{"name": "256/8 k=9 p=4", "data_share": 0.031}]
    return {
        "networks": [network],
        "epochs": epochs,
        "environment": {"cpu": "a processor", "vectors": "AVX2"},
        "threads": 2,
    }
