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

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lib import checkpoint, machine, records
from lib.data import loader
from lib.data.augment import Augment
from lib.data.download import Arrays
from lib.data.draws import order
from lib.data.mix import mix
from lib.model import network
from lib.native import layers
from lib.params import NUMERICS, Params, UserError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
TRAIN_EVAL = 2000  # training images, clean, on which train_loss and train_acc are measured after each epoch
CHECK_EVERY = 50  # steps between looks at the loss: each look makes a GPU wait
SAY_EVERY = 60  # seconds between progress lines inside an epoch


class TrainingError(UserError):
    """Training cannot go on; says where."""


@dataclasses.dataclass
class Trained:
    """What `fit` hands back: the selected weights, and what was measured."""

    model: nn.Module
    history: list[dict]  # an entry an epoch, see `fit`
    selected_epoch: int  # 1-based
    test: dict  # of the selected weights: loss, acc, logits (10,000, 10)
    last_test: dict  # of the last epoch's
    seconds: float  # training and evaluation, over all attempts
    peak_memory_mb: float  # of the process, or of the GPU where there is one
    native: bool | str  # True, or why the native layers were not used
    dtype: str  # see `arithmetic`
    products: str | None  # what multiplies bfloat16 in the native layers: see layers.bfloat16_arithmetic
    checkpoints: int
    resumed: int  # how often the run went on from a checkpoint


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
    """The device of a run; TrainingError where the one asked for is not there."""
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        name = next(kind for kind in ("cuda", "mps", "cpu") if there[kind])
    if not there[name]:
        raise TrainingError(f"device={name}: there is none here, give device=cpu or auto")
    return torch.device(name)


def has_bfloat16(device: torch.device) -> bool:
    """Whether PyTorch has bfloat16 convolutions for `device`; on other processors its fallback is 10 to 30 times slower
    than float32."""
    if device.type != "cpu":
        return True
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def build(p: Params, device: torch.device) -> tuple[nn.Module, Callable[[Tensor], Tensor], bool | str]:
    """The model, what to call for its logits, and True or why the native CPU layers are not used."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(p.seed)
        model = network(p)
    model = model.to(device, memory_format=torch.channels_last)
    dtype = DTYPES[p.dtype]
    if dtype == torch.float16 and device.type != "cuda":
        raise TrainingError(f"dtype=float16: not trained on {device.type}, give dtype=bfloat16 or float32")
    if not p.native:
        native = "native=False"
    elif p.compile:
        native = "compile=True"
    else:
        native = layers.accelerate(model, dtype) or True
    called = torch.compile(model) if p.compile else model
    if arithmetic(p, device, native) != p.dtype:
        dtype = torch.float32
        native += "; in float32, as PyTorch has no bfloat16 convolutions for this processor"

    def forward(images: Tensor) -> Tensor:
        # Exact types inside the native layers; elsewhere autocast decides, with float32 weights either way.
        with torch.autocast(device.type, dtype, enabled=native is not True and dtype != torch.float32):
            return called(images).float()

    return model, forward, native


def arithmetic(p: Params, device: torch.device, native: bool | str) -> str:
    """The type that a run works in: `p.dtype`, or float32 where neither the native layers nor PyTorch have bfloat16.

    `native`: what `build` said.
    """
    lacking = p.dtype == "bfloat16" and native is not True and not has_bfloat16(device)
    return "float32" if lacking else p.dtype


def make_optimizer(p: Params, model: nn.Module) -> torch.optim.AdamW:
    """AdamW; with decay_1d=False biases and BatchNorm weights keep their size, as in the original's recipe."""
    thin = [w for w in model.parameters() if w.ndim <= 1]
    rest = [w for w in model.parameters() if w.ndim > 1]
    groups = [
        {"params": rest, "weight_decay": p.weight_decay},
        {"params": thin, "weight_decay": p.weight_decay if p.decay_1d else 0.0},
    ]
    on_mps = next(model.parameters()).device.type == "mps"
    return torch.optim.AdamW(groups, lr=p.lr, eps=p.eps, fused=not on_mps)


def train_step(
    p: Params, forward, model: nn.Module, optimizer, scaler: torch.amp.GradScaler, images: Tensor, targets: Tensor
) -> Tensor:
    """One step of the optimizer on soft targets (B, 10); the loss, still on its device."""
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
def evaluate(p: Params, model: nn.Module, forward, images: np.ndarray, labels: np.ndarray) -> dict:
    """Mean cross-entropy, accuracy in per cent and the logits (N, 10), float16, in evaluation mode.

    images (N, 32, 32, 3) and labels (N,), uint8. The accuracy is that of the rounded logits, which are what a record
    keeps: whoever reads them finds the same number.
    """
    device = next(model.parameters()).device
    model.eval()
    batches = loader.plain_batches(images, p.test_batch_size, p.std)
    logits = torch.cat([forward(batch.to(device, non_blocking=True)) for batch in batches]).cpu()
    model.train()
    loss = F.cross_entropy(logits.double(), torch.from_numpy(labels.astype(np.int64)))
    logits = logits.half().numpy()
    return {"loss": float(loss), "acc": records.accuracy(logits, labels), "logits": logits}


def fit(p: Params, cifar: Arrays, folder: Path, say: Callable[[str], None] = print) -> Trained:
    """Trains one run, going on from its checkpoint in `folder` if there is one.

    Of each epoch the history keeps: epoch (1-based), lr (at its last step), loss (mean of what was minimised: with
    mixing and smoothing), train_loss and train_acc (after the epoch, on TRAIN_EVAL fixed training images as they
    are, neither augmented nor mixed), val_loss and val_acc (None without a validation split), seconds, and
    images_per_second of training alone. test_loss and test_acc are in it only with select=best_test, the leak shown.

    Raises TrainingError (NaN loss, no such device), checkpoint.CheckpointError, OSError (a full disk).
    """
    layers.keep_memory()
    device = pick_device(p.device)
    model, forward, native = build(p, device)
    optimizer = make_optimizer(p, model)
    scaler = torch.amp.GradScaler(device.type, enabled=p.dtype == "float16")
    dtype = arithmetic(p, device, native)
    products = layers.bfloat16_arithmetic() if native is True and dtype == "bfloat16" else None
    torch.backends.cudnn.deterministic = True  # a resumed run repeats what was lost; without effect elsewhere

    images, labels = cifar["train_images"], cifar["train_labels"]
    train_rows, val_rows = loader.split(labels, p.val_size, p.train_size, p.seed)
    train_images, train_labels = images[train_rows], labels[train_rows]
    n = len(train_rows)
    few = slice(0, min(TRAIN_EVAL, n))
    augment = Augment(train_images, p, loader.MEAN, loader.STD[p.std])
    steps = loader.steps(n, p.batch_size)

    def measure(images: np.ndarray, labels: np.ndarray) -> dict:
        return evaluate(p, model, forward, images, labels)

    # Everything that changes while training, and so everything that a checkpoint holds.
    epoch, step, history, best = 0, 0, [], None
    losses = torch.zeros(steps, device=device)  # of this epoch's steps
    seconds, epoch_seconds, train_seconds, memory, saved_count, resumed = 0.0, 0.0, 0.0, 0.0, 0, 0

    if (state := checkpoint.load(folder)) is not None:
        refuse_other(state, p, dtype, folder)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        scaler.load_state_dict(state["scaler"])
        epoch, step, history, best = state["epoch"], state["step"], state["history"], state["best"]
        losses.copy_(state["losses"])
        seconds, epoch_seconds, train_seconds = state["seconds"], state["epoch_seconds"], state["train_seconds"]
        memory, saved_count, resumed = state["memory"], state["checkpoints"], state["resumed"] + 1
        say(f"going on from epoch {epoch + 1} of {p.epochs}, step {step} of {steps}")
        if (begun_with := state.get("products", products)) != products:
            say(f"begun with {begun_with} products of bfloat16, {products} ones are faster here: rounding will differ")

    begun = mark = time.perf_counter()
    last_saved = last_said = started = time.monotonic()

    def lap() -> float:
        """Seconds since the last lap, counted into the run and into the epoch."""
        nonlocal seconds, epoch_seconds, mark
        passed, mark = time.perf_counter() - mark, time.perf_counter()
        seconds, epoch_seconds = seconds + passed, epoch_seconds + passed
        return passed

    def check_losses() -> None:
        finite = torch.isfinite(losses[:step])
        if not finite.all():
            where = int((~finite).nonzero()[0]) + 1
            raise no_number("loss", f"at epoch {epoch + 1}, step {where} of {steps}")

    def no_number(what: str, where: str) -> TrainingError:
        hint = f"lower lr ({p.lr}) or set clip ({p.clip}) to 1; the last checkpoint is from before"
        return TrainingError(f"the {what} is no longer a number {where}: {hint}")

    def save() -> None:
        nonlocal last_saved, saved_count, train_seconds
        check_losses()
        if not all(torch.isfinite(w).all() for w in model.state_dict().values()):  # the next loss would be none
            raise no_number("network", f"at epoch {epoch + 1}, step {step} of {steps}")
        train_seconds += lap()
        saved_count += 1
        state = {
            "fingerprint": p.fingerprint, "params": p.computed(), "numerics": NUMERICS, "dtype": dtype,
            "products": products,
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "scaler": scaler.state_dict(),
            "epoch": epoch, "step": step, "history": history, "best": best, "losses": losses, "seconds": seconds,
            "epoch_seconds": epoch_seconds, "train_seconds": train_seconds, "memory": max(memory, peak_memory(device)),
            "checkpoints": saved_count, "resumed": resumed,
        }  # fmt: skip
        checkpoint.save(folder, state)
        records.write_json(folder / records.PROGRESS, {"fingerprint": p.fingerprint, "step": step, "history": history})
        last_saved = time.monotonic()
        lap()  # writing is no training

    model.train()
    first_done = epoch * steps + step  # of this attempt, for the time left
    while epoch < p.epochs:
        plan, shuffled = augment.plan(epoch), order(p.seed, epoch, n)
        for x, y in loader.batches(augment, train_labels, plan, shuffled, p.batch_size, step, p.workers, device):
            x, y = x.to(device, non_blocking=True), y.to(device, non_blocking=True)
            x, targets = mix(x, y, p, epoch, step)
            lr = p.lr * schedule(p.schedule, (epoch * steps + step + 0.5) / (p.epochs * steps))
            for group in optimizer.param_groups:
                group["lr"] = lr
            losses[step] = train_step(p, forward, model, optimizer, scaler, x, targets)
            step += 1
            if step % CHECK_EVERY == 0:
                check_losses()
            if time.monotonic() - last_saved > 60 * p.checkpoint_minutes and step < steps:
                save()
            if time.monotonic() - last_said > (SAY_EVERY if last_said > started else 10):
                last_said = time.monotonic()
                done = epoch * steps + step
                left = (time.perf_counter() - begun) / (done - first_done) * (p.epochs * steps - done)
                loss = losses[:step].mean()
                say(f"epoch {epoch + 1}/{p.epochs}  step {step}/{steps}  loss {loss:.3f}  {records.span(left)} left")
        check_losses()
        train_seconds += lap()

        clean = measure(train_images[few], train_labels[few])
        entry = {"epoch": epoch + 1, "lr": lr, "loss": float(losses.cpu().double().mean())}
        entry |= {"train_loss": clean["loss"], "train_acc": clean["acc"], "val_loss": None, "val_acc": None}
        if p.val_size:
            val = measure(images[val_rows], labels[val_rows])
            entry |= {"val_loss": val["loss"], "val_acc": val["acc"]}
        if p.select == "best_test":
            test = measure(cifar["test_images"], cifar["test_labels"])
            entry |= {"test_loss": test["loss"], "test_acc": test["acc"]}
        if not all(value is None or math.isfinite(value) for value in entry.values()):
            raise no_number("loss", f"after epoch {epoch + 1}, in evaluation")
        lap()
        entry |= {"seconds": round(epoch_seconds, 3), "images_per_second": round(n / train_seconds, 2)}
        history.append(entry)
        if p.select != "last":
            score = entry["val_acc" if p.select == "best_val" else "test_acc"]
            if best is None or score > best["score"]:
                best = {"score": score, "epoch": epoch + 1, "model": copy.deepcopy(model.state_dict())}
        epoch, step, epoch_seconds, train_seconds = epoch + 1, 0, 0.0, 0.0
        losses.zero_()
        save()
        left = (time.perf_counter() - begun) / (epoch * steps - first_done) * (p.epochs - epoch) * steps
        say(progress_line(entry, p.epochs, left))

    # The test set is used here and, unless select=best_test, nowhere else.
    test = last_test = measure(cifar["test_images"], cifar["test_labels"])
    selected = p.epochs
    if best is not None and best["epoch"] != p.epochs:
        model.load_state_dict(best["model"])
        test, selected = measure(cifar["test_images"], cifar["test_labels"]), best["epoch"]
    lap()
    memory = max(memory, peak_memory(device))
    return Trained(
        model, history, selected, test, last_test, seconds, memory, native, dtype, products, saved_count, resumed
    )


def refuse_other(state: dict, p: Params, dtype: str, folder: Path) -> None:
    """CheckpointError with the differences if a checkpoint is another configuration's, or of another `arithmetic`."""
    if state["dtype"] != dtype:
        raise checkpoint.CheckpointError(
            f"{folder}: begun in {state['dtype']}, here it would go on in {dtype}: go on where it was begun, "
            "or move the folder away to start anew"
        )
    if changes := p.unlike(state):
        raise checkpoint.CheckpointError(
            f"{folder}: the checkpoint is of other parameters ({changes}); "
            "give them again, or move the folder away to start anew"
        )


def peak_memory(device: torch.device) -> float:
    """MB: the most that a CUDA GPU has held, elsewhere the process."""
    return torch.cuda.max_memory_allocated(device) / 1e6 if device.type == "cuda" else machine.peak_memory()


def progress_line(entry: dict, epochs: int, left: float) -> str:
    """An epoch in one line."""
    val = "" if entry["val_acc"] is None else f"  val {entry['val_acc']:.2f} %"
    return (
        f"epoch {entry['epoch']}/{epochs}  loss {entry['loss']:.3f}  train {entry['train_acc']:.2f} %{val}  "
        f"{entry['images_per_second']:.0f} images/s  {records.span(left)} left"
    )


def estimate(p: Params) -> float | None:
    """Seconds that the whole run takes here, from a few real steps on small batches of noise; accurate to a third.

    None where even these fail, for want of memory most likely: the run itself will say so. TrainingError as `fit`.
    """
    try:
        rate = _images_per_second(p)
    except TrainingError:
        raise
    except (RuntimeError, MemoryError):
        return None
    n = p.train_size or 50_000 - p.val_size
    evaluated = min(TRAIN_EVAL, n) + p.val_size + (10_000 if p.select == "best_test" else 0)
    # A forward pass costs about a third of a step.
    return (p.epochs * (n + evaluated / 3) + 20_000 / 3) / rate


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
