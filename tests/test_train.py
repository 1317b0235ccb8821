"""The loop: the same seed gives the same bits, the schedules are the published ones, selection does what it says."""

import contextlib
import dataclasses
import functools
import hashlib
import math
import time
import warnings

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lib import checkpoint, records, train
from lib import study as studies
from lib.data.augment import Augment, normalise
from lib.data.datasets import split
from lib.data.draws import order
from lib.data.mix import mix
from lib.model import ConvMixer
from lib.params import ParameterError, Params
from lib.records import MEAN, STD, Normalisation, RecordError
from lib.train import TrainingError, estimate, evaluate, fit, make_optimizer, pick_device, schedule

TIMES = ("seconds", "images_per_second")


def computed(history):
    return [{name: value for name, value in entry.items() if name not in TIMES} for entry in history]


def trained(p, data, folder):
    folder.mkdir()
    return fit(p, data, folder, say=lambda text: None)


def same(a, b):
    weights, others = a.state.model.state_dict(), b.state.model.state_dict()
    return (
        all(torch.equal(weights[name], others[name]) for name in weights)
        and computed(a.state.history) == computed(b.state.history)
        and np.array_equal(a.test["logits"], b.test["logits"])
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("native", [True, False])
def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tmp_path, data, tiny, dtype, native):
    first = trained(tiny(dtype=dtype, native=native), data, tmp_path / "first")
    again = trained(tiny(dtype=dtype, native=native), data, tmp_path / "again")
    other = trained(tiny(dtype=dtype, native=native, seed=1), data, tmp_path / "other")
    assert same(first, again)
    assert not same(first, other)


def test_plain_layers_work_in_float32_where_bfloat16_would_be_slow(tmp_path, data, tiny, monkeypatch):
    runs = {}
    for dtype, there in (("float32", True), ("bfloat16", True), ("bfloat16", False)):
        monkeypatch.setattr(train, "has_bfloat16", lambda device, there=there: there)
        runs[dtype, there] = trained(tiny(dtype=dtype, native=False), data, tmp_path / f"{dtype} {there}")
    assert same(runs["bfloat16", False], runs["float32", True])
    assert "in float32" in runs["bfloat16", False].native
    assert not same(runs["bfloat16", True], runs["float32", True])
    assert runs["bfloat16", True].native == "native=False"


@pytest.mark.parametrize("ampere", [True, False])
def test_a_gpu_that_only_emulates_bfloat16_has_none(monkeypatch, ampere):
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or ampere)
    assert train.has_bfloat16(torch.device("cuda:0")) is ampere
    p = Params(dtype="bfloat16", device="auto")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8 if ampere else 7, 0))
    found = train.precision(p, torch.device("cuda:0"), "not on the CPU")
    assert found["dtype"] == ("bfloat16" if ampere else "float32") and found["products"] is None


def test_a_checkpoint_of_another_arithmetic_is_refused(tmp_path, data, tiny, monkeypatch):
    """bfloat16 where it was begun, float32 where it would go on: the two must not end up in one run."""
    p = tiny(dtype="bfloat16", native=False)
    monkeypatch.setattr(train, "has_bfloat16", lambda device: True)
    assert trained(p, data, tmp_path / "run").dtype == "bfloat16"
    monkeypatch.setattr(train, "has_bfloat16", lambda device: False)
    with pytest.raises(RecordError, match="begun in bfloat16, here it would go on in float32"):
        fit(p, data, tmp_path / "run", say=lambda _: None)


def test_writing_a_checkpoint_is_not_counted_as_training(tmp_path, data, tiny, monkeypatch):
    """images_per_second is of training alone; the run's seconds hold the writing too."""
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda *arguments: (time.sleep(0.3), save(*arguments)))
    p = tiny(checkpoint_minutes=1e-9)
    result = trained(p, data, tmp_path / "run")
    assert result.state.seconds > 0.3 * (result.state.checkpoints - 1)
    assert result.state.checkpoints == 10
    assert all(p.train_size / entry["images_per_second"] < 0.9 for entry in result.state.history)


def test_native_and_plain_layers_learn_alike_within_the_noise_between_seeds(tmp_path, data):
    """Training loss and validation accuracy of `quick` at p=4, shortened; and a difference that this would notice."""
    few = dataclasses.replace(data, test_images=data.test_images[:100], test_labels=data.test_labels[:100])
    base = (
        studies.load("quick")
        .runs_of("patch-4")[0]
        .params.replace(train_size=1600, val_size=1000, epochs=2, device="cpu")
    )

    def curves(**values):
        """(seeds, epochs x 2)"""
        runs = [
            trained(base.replace(seed=seed, **values), few, tmp_path / f"{sorted(values.items())} {seed}").state.history
            for seed in range(4)
        ]
        return np.array([[entry[name] for entry in run for name in ("loss", "val_acc")] for run in runs])

    def apart(one, other):
        """The mean difference of each point of the curves, in standard deviations between seeds."""
        noise = np.sqrt((one.var(0, ddof=1) + other.var(0, ddof=1)) / 2)
        return np.abs((one - other).mean(0)) / noise

    plain = curves(native=False)
    assert apart(curves(native=True), plain).max() < 1
    assert apart(curves(native=True, lr=base.lr / 3), plain).max() > 1


def test_workers_change_nothing(tmp_path, data, tiny):
    assert same(
        trained(tiny(), data, tmp_path / "none"), trained(tiny(workers=2), data, tmp_path / "two")
    )  # fmt: skip


def test_it_learns(tmp_path, data, tiny):
    p = tiny(patch=4, dim=32, epochs=3, train_size=2000, mixup=0, cutmix=0, erasing=0, randaugment="none", lr=0.02)
    result = trained(p, data, tmp_path / "run")
    assert result.state.history[-1]["loss"] < result.state.history[0]["loss"]
    assert result.state.history[-1]["train_acc"] > 25 and result.test["acc"] > 25  # chance is 10


@pytest.mark.parametrize("p, epochs", [({"select": "last"}, [3]), ({"select": "best_val"}, [1, 2, 3])])
def test_the_selected_epoch_is_the_one_asked_for(tmp_path, data, tiny, p, epochs):
    result = trained(tiny(epochs=3, **p), data, tmp_path / "run")
    assert result.selected_epoch in epochs
    if p["select"] == "best_val":
        scores = [entry["val_acc"] for entry in result.state.history]
        assert result.selected_epoch == 1 + int(np.argmax(scores))  # the first of equals


def test_the_leak_is_in_the_history_only_where_it_is_asked_for(tmp_path, data, tiny):
    leak = trained(tiny(select="best_test", val_size=0), data, tmp_path / "leak")
    assert max(entry["test_acc"] for entry in leak.state.history) == leak.test["acc"]
    assert leak.last_test["acc"] == leak.state.history[-1]["test_acc"]
    assert leak.state.history[0]["val_acc"] is None
    honest = trained(tiny(), data, tmp_path / "honest")
    assert "test_acc" not in honest.state.history[0]


def test_the_model_handed_back_has_the_selected_weights(tmp_path, data, tiny):
    p = tiny(epochs=3, select="best_test", val_size=0, lr=0.05)
    result = trained(p, data, tmp_path / "run")
    again = evaluate(p, result.state.model, result.state.model, data.test_images, data.test_labels, data.normalisation)
    assert again["acc"] == pytest.approx(result.test["acc"], abs=0.02)


def test_evaluation_counts_every_image_once(data, tiny):
    model = ConvMixer(4, 1, 3, 8)
    forward = lambda images: nn.functional.one_hot(torch.full((len(images),), 3), 10).float()  # noqa: E731
    result = evaluate(tiny(test_batch_size=333), model, forward, data.test_images, data.test_labels, data.normalisation)
    assert result["acc"] == 10.0 and len(result["logits"]) == 10_000 and set(result["logits"].argmax(1)) == {3}
    logits = torch.zeros(1, 10)
    logits[0, 3] = 1
    expected = np.mean([nn.functional.cross_entropy(logits, torch.tensor([c])).item() for c in range(10)])
    assert result["loss"] == pytest.approx(expected, rel=1e-6)
    assert model.training


@pytest.mark.parametrize("t, share", [(0, 0), (0.2, 0.5), (0.4, 1), (0.6, 0.525), (0.8, 0.05), (0.9, 0.025), (1, 0)])
def test_triangular_is_the_originals(t, share):
    assert schedule("triangular", t) == pytest.approx(share)


def test_cosine_and_onecycle_are_torchs():
    parameter = [nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(parameter, lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)
    for step in range(100):
        assert schedule("cosine", step / 100) == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-6)
        optimizer.step()
        theirs.step()
    optimizer = torch.optim.SGD(parameter, lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=1001)
    for step in range(1000):  # theirs peaks one step before 30 %
        assert schedule("onecycle", step / 1000) == pytest.approx(optimizer.param_groups[0]["lr"], abs=0.006)
        optimizer.step()
        theirs.step()
    assert schedule("constant", 0.7) == 1


def test_the_learning_rate_of_a_run_is_its_schedule(tmp_path, data, tiny):
    result = trained(tiny(schedule="triangular", lr=0.1, batch_size=320), data, tmp_path / "run")
    assert [entry["lr"] for entry in result.state.history] == pytest.approx([0.1 * 0.625, 0.1 * 0.16875])


def test_decay_of_1d_parameters_can_be_left_out():
    model = ConvMixer(8, 1, 3, 4)
    count = sum(1 for w in model.parameters())
    for decay_1d, expected in ((True, 0.01), (False, 0.0)):
        groups = make_optimizer(Params(decay_1d=decay_1d), model).param_groups
        assert sum(len(group["params"]) for group in groups) == count
        assert {group["weight_decay"] for group in groups if group["params"][0].ndim == 1} == {expected}
        assert {group["weight_decay"] for group in groups if group["params"][0].ndim > 1} == {0.01}


def test_clipping_bounds_the_step(data, tiny):
    p = tiny(clip=1e-3)
    model, forward, _ = train.build(p, torch.device("cpu"))
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    images, targets = torch.randn(8, 3, 32, 32), torch.eye(10)[:8]
    train.train_step(p, forward, model, make_optimizer(p, model), scaler, images, targets)
    assert torch.cat([w.grad.flatten() for w in model.parameters()]).norm() == pytest.approx(1e-3, rel=1e-3)


def test_an_evaluation_that_is_no_number_stops_before_it_is_saved(tmp_path, data, tiny, monkeypatch):
    real = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *a: {**real(*a), "loss": float("inf")})
    with pytest.raises(TrainingError, match="became NaN or infinite in evaluation after epoch 1: lower lr"):
        trained(tiny(), data, tmp_path / "run")
    assert not list((tmp_path / "run").iterdir())


@pytest.mark.parametrize("epoch, there", [(1, False), (2, True)])
def test_a_loss_that_is_no_number_tells_of_a_checkpoint_where_there_is_one(
    tmp_path, data, tiny, monkeypatch, epoch, there
):
    real, steps = train.train_step, iter(range(10**9))
    last = epoch * 5 - 1  # five steps an epoch
    monkeypatch.setattr(train, "train_step", lambda *a: real(*a) * (float("nan") if next(steps) == last else 1))
    with pytest.raises(TrainingError, match=f"NaN or infinite at epoch {epoch}, step 5: lower lr") as error:
        trained(tiny(), data, tmp_path / "run")
    assert ("the last checkpoint is from before" in str(error.value)) is there
    assert (checkpoint.load(tmp_path / "run") is not None) is there


@pytest.mark.parametrize(
    "sizes",
    [
        {"patch": 16, "train_size": 65, "batch_size": 64},  # a last batch of one, whose map has 2 x 2 places
        {"patch": 16, "train_size": 1, "batch_size": 1},
        {"patch": 32, "train_size": 66, "batch_size": 64},
        {
            "patch": 32,
            "train_size": 2,
            "batch_size": 2,
            "kernel": 63,
            "dim": 1,
            "val_size": 10,
            "test_batch_size": 9999,
        },
        {"arch": "vit", "patch": 32, "dim": 16, "train_size": 3, "batch_size": 2},
        {"arch": "cnn", "train_size": 3, "batch_size": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("native", [True, False])
def test_the_smallest_sizes_that_are_not_refused_train(tmp_path, data, tiny, sizes, native):
    few = dataclasses.replace(data, test_images=data.test_images[:10], test_labels=data.test_labels[:10])
    result = fit(tiny(epochs=1, native=native, **sizes), few, tmp_path, lambda text: None)
    assert np.isfinite(result.state.history[0]["loss"]) and len(result.test["logits"]) == 10


def test_a_device_that_is_not_there_is_said(monkeypatch, devices):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="device=cuda: there is none here, give device=cpu or auto"):
        pick_device("cuda")


def test_half_precision_without_cuda_is_said(tiny):
    with pytest.raises(TrainingError, match="dtype=float16: not trained on cpu"):
        train.build(tiny(dtype="float16", device="auto"), torch.device("cpu"))


def test_an_estimate_is_a_time(tiny):
    assert 0 < estimate(tiny()) < 600
    assert estimate(tiny(epochs=2000)) > 10 * estimate(tiny(epochs=2))


def test_a_folder_too_small_for_its_batches_is_refused_before_anything_is_timed(tmp_path, tiny):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(5):
            (tmp_path / name / f"{i}.png").touch()
    p = tiny(dataset=f"folder:{tmp_path}", patch=32, batch_size=1, train_size=0, val_size=0, select="last")
    with pytest.raises(ParameterError, match="batch_size=1: at patch=32 BatchNorm needs 2 images or more"):
        estimate(p)


def test_an_even_kernel_trains_without_a_warning(tmp_path, data, tiny):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Using padding='same'")
        few = dataclasses.replace(data, test_images=data.test_images[:10], test_labels=data.test_labels[:10])
        assert np.isfinite(trained(tiny(kernel=4, epochs=1), few, tmp_path / "run").test["loss"])


def test_times_for_people():
    assert [records.span(s) for s in (45, 600, 12_000)] == ["45 s", "10 min", "3 h 20 min"]


def test_compiled_and_plain_agree(data, tiny):
    plain = train.build(tiny(native=False), torch.device("cpu"))[1]
    compiled, note = train.build(tiny(compile=True), torch.device("cpu"))[1:]
    images = torch.randn(8, 3, 32, 32)
    assert note == "compile=True"
    torch.testing.assert_close(compiled(images), plain(images), rtol=1e-4, atol=1e-5)


def test_each_batch_size_has_compiled_code_of_its_own(tiny, monkeypatch):
    """An epoch's last batch is smaller. Code made for it must not be used for the others from then on: a process that
    goes on has not made it yet, and would round differently."""
    used = []

    def backend(graph, inputs):
        def call(*arguments):
            used.append(graph)
            return graph.forward(*arguments)

        return call

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    forward = train.build(tiny(compile=True), torch.device("cpu"))[1]
    for images in (8, 8, 5, 8):
        forward(torch.randn(images, 3, 32, 32))
    first, second, odd, after = used
    assert first is second is after is not odd


@pytest.mark.parametrize("arch", ["convmixer", "cnn"])
def test_a_training_starts_from_the_weights_that_its_seed_has_always_had(arch, tiny):
    """What changes them changes every result, and raises NUMERICS. They are uniform draws, alike on all processors."""
    weights = train.build(tiny(arch=arch, seed=1), torch.device("cpu"))[0].state_dict()
    digest = hashlib.sha256(b"".join(value.numpy().tobytes() for value in weights.values())).hexdigest()[:16]
    assert digest == {"convmixer": "0915bf07024accfc", "cnn": "8e69a54dbf3b7ec9"}[arch]


@pytest.mark.parametrize("seconds, due", [(299, False), (301, True)])
def test_a_checkpoint_is_due_after_five_minutes(seconds, due, tiny, monkeypatch):
    state = train.State(None, None, None, torch.zeros(4))
    clock = train.Clock(Params(), state)
    now = clock.saved
    monkeypatch.setattr(train.time, "perf_counter", lambda: now + seconds)
    assert clock.checkpoint_is_due() is due


def test_a_network_that_is_no_number_is_never_saved_even_while_its_loss_still_is_one(tmp_path, data, tiny, monkeypatch):
    real, steps = train.train_step, []

    def poison(p, forward, model, *others):
        loss = real(p, forward, model, *others)
        steps.append(1)
        if len(steps) == 2:
            model.head.bias.data[0] = float("nan")
        return loss

    monkeypatch.setattr(train, "train_step", poison)
    with pytest.raises(TrainingError, match="the network became NaN or infinite at epoch 1, step 2"):
        train.fit(tiny(checkpoint_minutes=1e-9), data, tmp_path, say=lambda _: None)
    assert checkpoint.load(tmp_path)["step"] == 1


def test_the_loop_is_the_one_that_a_reader_would_write(tmp_path, data, tiny):
    """From the split, the plans, the orders and the mixes, with torch's own AdamW, schedule and clipping."""
    p = tiny(
        native=False,
        clip=0.5,
        eps=1e-3,
        weight_decay=0.5,
        decay_1d=False,
        label_smoothing=0.1,
        select="last",
        std="images",
    )
    data = dataclasses.replace(data, normalisation=Normalisation(MEAN, STD["images"]))
    state = fit(p, data, tmp_path, say=lambda text: None).state

    rows, val = split(data.train_labels, p.val_size, p.train_size, p.seed)
    images, labels = data.train_images[rows], torch.tensor(data.train_labels[rows]).long()
    augment = Augment(images, p, *data.normalisation)
    batches = [order(p.seed, epoch, len(rows)) for epoch in range(p.epochs)]
    torch.manual_seed(p.seed)
    model = ConvMixer(p.dim, p.depth, p.kernel, p.patch).to(memory_format=torch.channels_last)
    thick, thin = ([w for w in model.parameters() if (w.ndim > 1) == many] for many in (True, False))
    optimizer = torch.optim.AdamW(thick, lr=p.lr, weight_decay=p.weight_decay, eps=p.eps)
    optimizer.add_param_group({"params": thin, "weight_decay": 0.0})
    steps = p.epochs * math.ceil(len(rows) / p.batch_size)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: (1 + math.cos(math.pi * (t + 0.5) / steps)) / 2)
    for epoch in range(p.epochs):
        for step, batch in enumerate(torch.tensor(batches[epoch]).split(p.batch_size)):
            x = torch.tensor(augment.batch(augment.plan(epoch), batch.numpy())).permute(0, 3, 1, 2)
            x, targets = mix(x, labels[batch], p, epoch, step)
            optimizer.zero_grad()
            F.cross_entropy(model(x), targets).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), p.clip)
            optimizer.step()
            rates.step()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state.model.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    model.eval()
    for part, held in (("train", rows), ("val", val)):
        plain = torch.tensor(normalise(data.train_images[held], *data.normalisation)).permute(0, 3, 1, 2)
        logits, right = model(plain), torch.tensor(data.train_labels[held]).long()
        assert state.history[-1][f"{part}_loss"] == pytest.approx(F.cross_entropy(logits, right).item(), rel=1e-3)
        assert state.history[-1][f"{part}_acc"] == pytest.approx(
            100 * (logits.argmax(1) == right).float().mean().item(), abs=0.6
        )


def test_of_epochs_that_are_equally_good_the_first_is_kept(tmp_path, data, tiny, monkeypatch):
    real = train.evaluate
    monkeypatch.setattr(train, "evaluate", lambda *a: real(*a) | {"acc": 50.0})
    assert train.fit(tiny(), data, tmp_path, say=lambda text: None).selected_epoch == 1
