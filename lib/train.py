"""Training and evaluation: one explicit loop that can stop at any step and go on as if it had not.

Nothing random happens in here but the initial weights: the split, the order, the augmentation and the mixing are
functions of (seed, epoch, image or batch number), so a checkpoint needs no random state.
"""

import copy
import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import checkpoint, machine, records
from lib.data import datasets, loader
from lib.data.augment import Augment
from lib.data.datasets import Dataset
from lib.data.draws import order
from lib.data.mix import mix
from lib.model import network
from lib.native import layers
from lib.params import NUMERICS, Params, UserError
from lib.records import Normalisation

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRAIN_EVAL = 2000  # training images, clean, on which train_loss and train_acc are measured after each epoch
CHECK_EVERY = 50  # steps between looks at the loss: each look makes a GPU wait


class TrainingError(UserError):
    """Training cannot go on; says where."""


@dataclasses.dataclass
class Trained:
    """What `fit` hands back: the state at the end, with the selected weights in its model, and what was measured."""

    state: "State"
    test: dict  # of the selected weights: loss, acc, logits (N, classes)
    last_test: dict  # of the last epoch's
    native: bool | str  # True, or why the native layers were not used
    dtype: str  # what it worked in: see `precision`
    products: str | None  # what multiplies bfloat16 in the native layers, None where nothing does
    tf32: bool  # whether a GPU rounds what it multiplies in float32 convolutions to 10 bits

    @property
    def selected_epoch(self) -> int:
        """1-based."""
        return self.state.best["epoch"] if self.state.best else len(self.state.history)


def schedule(kind: str, t: float) -> float:
    """The learning rate at the share `t` (0..1) of all steps, as a multiple of the peak."""
    if kind == "constant":
        return 1.0
    if kind == "cosine":
        return 0.5 * (1 + math.cos(math.pi * t))
    if kind == "triangular":  # the original's: up to 40 %, down to a twentieth at 80 %, to zero
        return float(np.interp(t, [0, 0.4, 0.8, 1], [0, 1, 1 / 20, 0]))
    if kind == "onecycle":  # as torch's OneCycleLR with its defaults: cosine up over 30 %, cosine down
        low, end, peak = 1 / 25, 1 / 25e4, 0.3
        a, b, share = (low, 1.0, t / peak) if t < peak else (1.0, end, (t - peak) / (1 - peak))
        return b + (a - b) * 0.5 * (1 + math.cos(math.pi * share))
    raise ValueError(kind)


def pick_device(name: str) -> torch.device:
    """The device of a run; TrainingError where the one asked for cannot be used."""
    machine.use_cores()
    if name == "auto":
        name = machine.best_device()
    if fault := machine.device_fault(name):
        raise TrainingError(f"device={name}: {fault}, give device=cpu or auto")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether PyTorch has fast bfloat16 convolutions for `device`; elsewhere its fallback is 10 to 30 times slower than
    float32."""
    if device.type == "cuda":  # one before Ampere only emulates it
        with torch.cuda.device(device):
            return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def build(
    p: Params, device: torch.device, classes: int = 10
) -> tuple[nn.Module, Callable[[Tensor], Tensor], bool | str]:
    """The model, what to call for its logits, and True or why the native CPU layers are not used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        model = network(p, classes)
    model = model.to(device).to(memory_format=torch.channels_last)
    dtype = DTYPES[p.dtype]
    if dtype == torch.float16 and device.type != "cuda":
        raise TrainingError(f"dtype=float16: not trained on {device.type}, give dtype=bfloat16 or float32")
    native: bool | str
    if not p.native:
        native = "native=False"
    elif p.compile:
        native = "compile=True"
    else:
        native = layers.accelerate(model, dtype) or True
    if p.compile:
        torch.compiler.reset()  # its limit of recompilations counts over all models of the process
    # Each batch size has code of its own: code for all sizes, made at the first odd batch, would be slower and, made
    # anew in a process that goes on, round differently.
    called = torch.compile(model, dynamic=False) if p.compile else model
    if precision(p, device, native)["dtype"] != p.dtype:
        dtype = torch.float32
        native = f"{native}; in float32, as PyTorch has no bfloat16 convolutions for this processor"

    def forward(images: Tensor) -> Tensor:
        # Exact types inside the native layers; elsewhere autocast decides, with float32 weights either way.
        with torch.autocast(device.type, dtype, enabled=native is not True and dtype != torch.float32):
            return called(images).float()

    return model, forward, native


def make_optimizer(p: Params, model: nn.Module) -> torch.optim.AdamW:
    """AdamW; with decay_1d=False biases and BatchNorm weights keep their size, as in the original's recipe."""
    thin = [w for w in model.parameters() if w.ndim <= 1]
    rest = [w for w in model.parameters() if w.ndim > 1]
    groups = [
        {"params": rest, "weight_decay": p.weight_decay},
        {"params": thin, "weight_decay": p.weight_decay if p.decay_1d else 0.0},
    ]
    return torch.optim.AdamW(groups, lr=p.lr, eps=p.eps, fused=True)


def train_step(
    p: Params, forward, model: nn.Module, optimizer, scaler: torch.amp.GradScaler, images: Tensor, targets: Tensor
) -> Tensor:
    """One step of the optimizer on soft targets (B, classes); the loss, still on its device."""
    loss = F.cross_entropy(forward(images), targets)
    optimizer.zero_grad(set_to_none=True)
    scaler.scale(loss).backward()
    if p.clip:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), p.clip)
    scaler.step(optimizer)
    scaler.update()
    return loss.detach()


@torch.inference_mode()
def evaluate(
    p: Params, model: nn.Module, forward, images: np.ndarray, labels: np.ndarray, normalisation: Normalisation
) -> dict:
    """Mean cross-entropy, accuracy in per cent and the logits (N, classes), float16, in evaluation mode.

    images (N, 32, 32, 3), uint8, and labels (N,); `normalisation`: what images are normalised by. The accuracy
    is that of the rounded logits, which are what a record keeps: whoever reads them finds the same number.
    """
    device = next(model.parameters()).device
    model.eval()
    logits, done = torch.empty(0), 0
    for batch in loader.plain_batches(images, p.test_batch_size, normalisation):
        part = forward(batch.to(device))
        if not done:  # one place for all: small tensors that stay would lie scattered among the freed activations
            logits = part.new_empty(len(images), part.shape[1])
        logits[done : done + len(part)] = part
        done += len(part)
    model.train()
    logits = logits.cpu()
    loss = F.cross_entropy(logits.double(), torch.from_numpy(labels.astype(np.int64)))
    rounded = logits.half().numpy()
    return {"loss": float(loss), "acc": records.accuracy(rounded, labels), "logits": rounded}


@dataclasses.dataclass
class State:
    """All that changes while a run trains, and so all that a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    losses: Tensor  # of this epoch's steps
    epoch: int = 0  # finished ones
    step: int = 0  # finished ones of this epoch
    history: list[dict] = dataclasses.field(default_factory=list)  # an entry an epoch
    best: dict | None = None  # of the best epoch so far: score, epoch (1-based), model (its weights)
    seconds: float = 0.0  # training and evaluation, over all attempts
    epoch_seconds: float = 0.0  # the same of this epoch
    train_seconds: float = 0.0  # of this epoch's steps alone
    memory: float = 0.0  # MB, see peak_memory
    checkpoints: int = 0
    resumed: int = 0  # how often the run went on from a checkpoint

    def save(self, folder: Path, about: dict) -> None:
        """Writes a checkpoint, and beside it how far the run has come; `about` says whose it is."""
        self.checkpoints += 1
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        parts = {name: values[name].state_dict() for name in ("model", "optimizer", "scaler")}
        checkpoint.save(folder, {**about, **values, **parts})
        progress = {"fingerprint": about["fingerprint"], "step": self.step, "history": self.history}
        records.write_json(folder / records.PROGRESS, progress)

    def load(self, saved: dict) -> None:
        """Goes on from what `save` wrote."""
        for name in ("model", "optimizer", "scaler"):
            getattr(self, name).load_state_dict(saved[name])
        self.losses.copy_(saved["losses"])
        for name in ("epoch", "step", "history", "best", "seconds", "epoch_seconds", "train_seconds", "memory"):
            setattr(self, name, saved[name])
        self.checkpoints, self.resumed = saved["checkpoints"], saved["resumed"] + 1

    def check(self, p: Params, weights: bool = False) -> None:
        """TrainingError if a loss of this epoch (or a weight) is NaN or infinite."""
        finite = torch.isfinite(self.losses[: self.step])
        if not finite.all():
            raise self.diverged("loss", f"at epoch {self.epoch + 1}, step {int((~finite).nonzero()[0]) + 1}", p)
        if weights and not all(torch.isfinite(w).all() for w in self.model.state_dict().values()):
            # The next loss would be NaN.
            raise self.diverged("network", f"at epoch {self.epoch + 1}, step {self.step}", p)

    def diverged(self, what: str, where: str, p: Params) -> TrainingError:
        """The error of a training that cannot go on."""
        left = "; the last checkpoint is from before" if self.checkpoints else ""
        hint = f"lower lr ({p.lr}) or set clip ({p.clip}) to 1{left}"
        return TrainingError(f"the {what} became NaN or infinite {where}: {hint}")


class Clock:
    """Counts seconds into a run's state; knows when a checkpoint is due, the speed and how long the rest takes."""

    def __init__(self, p: Params, state: State):
        self.p, self.state, self.steps = p, state, len(state.losses)
        self.first = self.done()  # steps before this attempt
        self.begun = self.mark = self.saved = time.perf_counter()

    def done(self) -> int:
        """Steps of the whole run that are finished."""
        return self.state.epoch * self.steps + self.state.step

    def lap(self) -> float:
        """Seconds since the last lap, counted into the run and into the epoch."""
        passed, self.mark = time.perf_counter() - self.mark, time.perf_counter()
        self.state.seconds, self.state.epoch_seconds = self.state.seconds + passed, self.state.epoch_seconds + passed
        return passed

    def left(self) -> float:
        """Seconds to the end of the run, at this attempt's pace."""
        pace = (time.perf_counter() - self.begun) / (self.done() - self.first)
        return pace * (self.p.epochs * self.steps - self.done())

    def speed(self) -> float:
        """Training images a second in this epoch so far."""
        seconds = self.state.train_seconds + time.perf_counter() - self.mark
        return self.p.batch_size * self.state.step / seconds

    def checkpoint_is_due(self) -> bool:
        return time.perf_counter() - self.saved > 60 * self.p.checkpoint_minutes


def fit(
    p: Params,
    data: Dataset,
    folder: Path,
    say: Callable[[str], None] = print,
    show: Callable[[Clock], None] = lambda clock: None,
) -> Trained:
    """Trains one run, going on from its checkpoint in `folder` if there is one.

    say: takes a line that the user should read. show: called after each step and, with `state.step` at 0, after each
    epoch; see runs/progress.py.

    Of each epoch the history keeps: epoch (1-based), lr (at its last step), loss (mean of what was minimised: with
    mixing and smoothing), train_loss and train_acc (after the epoch, on TRAIN_EVAL fixed training images as they
    are, neither augmented nor mixed), val_loss and val_acc (None without a validation split), seconds, and
    images_per_second of training alone. test_loss and test_acc are in it only with select=best_test, the leak shown.

    Raises TrainingError (NaN loss, no such device), checkpoint.CheckpointError, RecordError (a checkpoint of other
    parameters or images), OSError (a full disk).
    """
    layers.keep_memory()
    device = pick_device(p.device)
    pinned = device.type == "cuda"  # only from pinned memory is a copy safe that nobody waits for
    if pinned:
        if device.index is not None:
            torch.cuda.set_device(device)  # also for the thread that pins memory
        torch.cuda.reset_peak_memory_stats(device)
        # A resumed run repeats what was lost, so convolutions and attention take the ways that repeat themselves. Of
        # attention a processor has such a way already, and this one would round otherwise.
        torch.backends.cudnn.deterministic = True
        for way in ("flash", "mem_efficient", "cudnn"):
            getattr(torch.backends.cuda, f"enable_{way}_sdp")(False)
    classes, normalisation = len(data.classes), data.normalisation
    model, forward, native = build(p, device, classes)

    images, labels = data.train_images, data.train_labels
    train_rows, val_rows = datasets.split(labels, p.val_size, p.train_size, p.seed)
    train_labels = labels[train_rows]
    watched = {
        "train": (images[train_rows[:TRAIN_EVAL]], train_labels[:TRAIN_EVAL]),
        "val": (images[val_rows], labels[val_rows]),
    }
    if p.select == "best_test":
        watched["test"] = data.test_images, data.test_labels
    augment = Augment(images, p, *normalisation, train_rows)
    steps = loader.steps(len(train_rows), p.batch_size)

    scaler = torch.amp.GradScaler(device.type, enabled=p.dtype == "float16")
    state = State(model, make_optimizer(p, model), scaler, torch.zeros(steps, device=device))
    about = {"fingerprint": p.fingerprint, "params": p.computed(), "numerics": NUMERICS, "data_digest": data.digest}
    made = precision(p, device, native)
    about |= {"device": device.type, **made}
    if (saved := checkpoint.load(folder)) is not None:
        refuse_other(saved, about, p, folder, say)
        state.load(saved)
        where = f"going on from epoch {state.epoch + 1} of {p.epochs}, step {state.step} of {steps}"
        say("trained to its end before, the test is left" if state.epoch == p.epochs else where)
    clock = Clock(p, state)

    def save() -> None:
        state.check(p, weights=True)
        state.train_seconds += clock.lap()
        state.memory = max(state.memory, peak_memory(device))
        state.save(folder, about)
        clock.saved = time.perf_counter()
        clock.lap()  # the time of writing does not count as training

    model.train()
    while state.epoch < p.epochs:
        plan, shuffled = augment.plan(state.epoch), order(p.seed, state.epoch, len(train_rows))
        for x, y in loader.batches(augment, train_labels, plan, shuffled, p.batch_size, state.step, p.workers, device):
            x, y = x.to(device, non_blocking=pinned), y.to(device, non_blocking=pinned)
            x, targets = mix(x, y, p, state.epoch, state.step, classes)
            lr = p.lr * schedule(p.schedule, (clock.done() + 0.5) / (p.epochs * steps))
            for group in state.optimizer.param_groups:
                group["lr"] = lr
            state.losses[state.step] = train_step(p, forward, model, state.optimizer, scaler, x, targets)
            state.step += 1
            if state.step % CHECK_EVERY == 0:
                state.check(p)
            if state.step < steps and clock.checkpoint_is_due():
                save()
            show(clock)
        state.check(p)
        state.train_seconds += clock.lap()

        entry: dict[str, Any] = {"epoch": state.epoch + 1, "lr": lr, "loss": float(state.losses.cpu().double().mean())}
        for name, part in watched.items():
            found = evaluate(p, model, forward, *part, normalisation) if len(part[0]) else {"loss": None, "acc": None}
            entry |= {f"{name}_loss": found["loss"], f"{name}_acc": found["acc"]}
        if not all(value is None or math.isfinite(value) for value in entry.values()):
            raise state.diverged("loss", f"in evaluation after epoch {state.epoch + 1}", p)
        clock.lap()
        entry |= {
            "seconds": round(state.epoch_seconds, 3),
            "images_per_second": round(len(train_rows) / state.train_seconds, 2),
        }
        state.history.append(entry)
        score = None if p.select == "last" else entry["val_acc" if p.select == "best_val" else "test_acc"]
        if score is not None and (state.best is None or score > state.best["score"]):
            state.best = {"score": score, "epoch": state.epoch + 1, "model": copy.deepcopy(model.state_dict())}
        state.epoch, state.step, state.epoch_seconds, state.train_seconds = state.epoch + 1, 0, 0.0, 0.0
        state.losses.zero_()
        save()
        show(clock)

    # The test set is used here and, unless select=best_test, nowhere else.
    test = last_test = evaluate(p, model, forward, data.test_images, data.test_labels, normalisation)
    if state.best is not None and state.best["epoch"] != p.epochs:
        model.load_state_dict(state.best["model"])
        test = evaluate(p, model, forward, data.test_images, data.test_labels, normalisation)
    clock.lap()
    state.memory = max(state.memory, peak_memory(device))
    return Trained(state, test, last_test, native, **made)


def precision(p: Params, device: torch.device, native: bool | str) -> dict:
    """The type that a run works in (`dtype`), and how that is multiplied: see Trained. `native`: what `build` said.

    The type is p.dtype, or float32 where neither the native layers nor PyTorch have bfloat16.
    """
    lacking = p.dtype == "bfloat16" and native is not True and not has_bfloat16(device)
    dtype = "float32" if lacking else p.dtype
    ampere = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return {
        "dtype": dtype,
        "products": layers.bfloat16_arithmetic() if native is True and dtype == "bfloat16" else None,
        "tf32": ampere and dtype == "float32" and torch.backends.cudnn.allow_tf32,
    }


def refuse_other(saved: dict, about: dict, p: Params, folder: Path, say: Callable[[str], None]) -> None:
    """RecordError if a checkpoint is another configuration's, of other images or of another type.

    Says where rounding will differ.
    """
    records.refuse_other(saved, p, folder / records.CHECKPOINT)
    if (digest := saved.get("data_digest", about["data_digest"])) != about["data_digest"]:
        raise records.RecordError(
            f"{folder}: begun with other images than {p.dataset} holds now ({digest} -> {about['data_digest']}): bring "
            "them back, or move the folder away to start anew"
        )
    if saved["dtype"] != about["dtype"]:
        raise records.RecordError(
            f"{folder}: begun in {saved['dtype']}, here it would go on in {about['dtype']}: go on where it was begun, "
            "or move the folder away to start anew"
        )
    begun = {name: saved.get(name, about[name]) for name in ("device", "products", "tf32")}
    if begun["device"] != about["device"]:
        say(f"begun on {begun['device']}, goes on on {about['device']}: rounding will differ")
        return
    if begun["products"] != about["products"]:
        say(
            f"begun with {begun['products']} products of bfloat16, {about['products']} ones are faster here: "
            "rounding will differ"
        )
    if begun["tf32"] != about["tf32"]:
        say(f"begun {'without' if about['tf32'] else 'with'} TF32, which is otherwise here: rounding will differ")


def peak_memory(device: torch.device) -> float:
    """MB: the most that a CUDA GPU has held, elsewhere the process."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else machine.peak_memory()


def estimate(p: Params) -> float | None:
    """Seconds that the whole run takes here, from a few real steps on small batches of noise; accurate to a third.

    None where even these fail, for want of memory most likely: the run itself will say so. TrainingError as `fit`, and
    what `datasets.sizes` raises, before the first step: a batch that cannot be would fail there less readably.
    """
    n, tested = datasets.sizes(p)
    try:
        rate = _images_per_second(p)
    except (RuntimeError, MemoryError):
        return None
    evaluated = min(TRAIN_EVAL, n) + p.val_size + (tested if p.select == "best_test" else 0)
    # A forward pass costs about a third of a step.
    return (p.epochs * (n + evaluated / 3) + 2 * tested / 3) / rate


def _images_per_second(p: Params) -> float:
    """The speed of training, from a few steps."""
    layers.keep_memory()
    device = pick_device(p.device)
    model, forward, _ = build(p, device)
    optimizer = make_optimizer(p, model)
    scaler = torch.amp.GradScaler(device.type, enabled=p.dtype == "float16")
    size = min(4, p.batch_size)

    def step_of(size: int) -> float:
        x = torch.randn(size, 3, 32, 32, device=device).contiguous(memory_format=torch.channels_last)
        targets = torch.full((size, 10), 0.1, device=device)
        begun = time.perf_counter()
        float(train_step(p, forward, model, optimizer, scaler, x, targets))  # float: waits for a GPU
        return time.perf_counter() - begun

    step_of(size)  # the first of a size compiles or allocates
    # A batch four times as large is tried as long as a step is short: small batches understate the speed.
    while (seconds := step_of(size)) < 0.5 and size < p.batch_size:
        size = min(4 * size, p.batch_size)
        step_of(size)
    return size / seconds
