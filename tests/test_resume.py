"""A run that is broken off and goes on ends in the same bits as one that was not, wherever it is broken off.

Here inside one process, by exceptions; tests/faults kills real processes.
"""

import dataclasses

import pytest
import safetensors.torch
import torch

from lib import checkpoint, records, train
from lib.data.loader import steps
from lib.params import Params

# Native layers, mixing, RandAugment and erasing (the defaults) in a training of a second; a checkpoint after each step.
SMALL = {
    "kernel": 5, "patch": 4, "dim": 16, "depth": 2, "epochs": 3, "train_size": 300, "val_size": 200, "lr": 0.02,
    "checkpoint_minutes": 1e-9, "study": "test", "device": "cpu",
}  # fmt: skip
KINDS = [("cpu", "float32", "convmixer"), ("cpu", "bfloat16", "convmixer")]
if torch.cuda.is_available():
    KINDS += [("cuda", dtype, "convmixer") for dtype in ("float32", "bfloat16", "float16")]
    KINDS += [("cuda", "float32", "vit")]
TIMING = ("seconds", "images_per_second")
# What a run is broken off in, each called many times, and with how many data workers.
PLACES = [
    ((train, "train_step"), 2), ((train, "evaluate"), 0), ((checkpoint, "save"), 2), ((records, "write_json"), 0),
]  # fmt: skip


class BrokenOff(Exception):
    """Stands for whatever ends a process."""


@pytest.fixture(scope="module")
def few(data):
    """CIFAR-10 with 500 test images."""
    return dataclasses.replace(data, test_images=data.test_images[:500], test_labels=data.test_labels[:500])


@pytest.fixture(scope="module", params=KINDS, ids=" ".join)
def whole(request, few, tmp_path_factory):
    """The parameters and the outcome of a training that nothing disturbed; its best epoch is not its last."""
    device, dtype, arch = request.param
    for seed in range(20):
        p = Params.of(**{**SMALL, "device": device}, dtype=dtype, arch=arch, seed=seed)
        trained = train.fit(p, few, tmp_path_factory.mktemp("whole"), say=lambda _: None)
        if trained.selected_epoch < p.epochs:
            return p, outcome(trained)
    raise AssertionError("in 20 seeds the last epoch was always the best")


def outcome(trained: train.Trained) -> dict:
    """All that must be the same to the bit, so everything but timing."""
    history = [{name: value for name, value in epoch.items() if name not in TIMING} for epoch in trained.state.history]
    weights = safetensors.torch.save({name: w.contiguous() for name, w in trained.state.model.state_dict().items()})
    tests = [(test["loss"], test["acc"], test["logits"].tobytes()) for test in (trained.test, trained.last_test)]
    return {"weights": weights, "history": history, "tests": tests, "selected": trained.selected_epoch}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_run_that_goes_on_where_rounding_differs_says_so(few, tmp_path, monkeypatch, device):
    p, lines = Params.of(**SMALL, dtype="bfloat16"), []
    with monkeypatch.context() as patch:
        break_off(patch, (train, "train_step"), 5)
        with pytest.raises(BrokenOff):
            train.fit(p, few, tmp_path, say=lambda _: None)
    state = checkpoint.load(tmp_path)
    others = {"dot": "float32", "float32": "dot"}
    checkpoint.save(tmp_path, {**state, "device": device, "products": others[state["products"]]})
    train.fit(p, few, tmp_path, say=lines.append)
    if device == "cpu":
        assert f"begun with {others[state['products']]} products of bfloat16, {state['products']} ones" in lines[0]
    else:
        assert lines[0] == "begun on cuda, goes on on cpu: rounding will differ"
    assert not any("rounding" in line for line in lines[1:])


def break_off(monkeypatch, place, calls: int) -> None:
    """Makes the function `place` (module, name) raise instead of returning from its call number `calls`."""
    module, name = place
    function, count = getattr(module, name), iter(range(1, 10**9))

    def breaking(*arguments, **named):
        result = function(*arguments, **named)
        if next(count) == calls:
            raise BrokenOff
        return result

    monkeypatch.setattr(module, name, breaking)


def go_on(p: Params, few, folder) -> dict:
    """The rest of a run, to its end."""
    return outcome(train.fit(p, few, folder, say=lambda _: None))


@pytest.mark.parametrize("place, workers", PLACES)
def test_broken_off_anywhere_it_ends_in_the_same_bits(whole, few, tmp_path, monkeypatch, place, workers):
    p, expected = whole
    p = p.replace(workers=workers)
    for calls in (2, 4, 1):  # three attempts that come to nothing, each from where the one before had got
        with monkeypatch.context() as patch, pytest.raises(BrokenOff):
            break_off(patch, place, calls)
            go_on(p, few, tmp_path)
    assert checkpoint.load(tmp_path)["step"] + checkpoint.load(tmp_path)["epoch"] > 0
    assert go_on(p, few, tmp_path) == expected


def test_checkpoints_inside_an_epoch_change_nothing(whole, few, tmp_path):
    p, expected = whole
    assert go_on(p.replace(checkpoint_minutes=1000), few, tmp_path) == expected


def fresh(p: Params, what: str):
    """A piece of a checkpoint's state as it is when a training starts."""
    model = train.build(p, torch.device("cpu"))[0]
    match what:
        case "model":
            return model.state_dict()
        case "optimizer":
            return train.make_optimizer(p, model).state_dict()
        case "losses":
            return torch.zeros(steps(p.train_size, p.batch_size))
    return {"epoch": 0, "step": 0, "history": [], "best": None}[what]


@pytest.mark.parametrize("whole", KINDS[:1], indirect=True)
@pytest.mark.parametrize("left_out", ["model", "optimizer", "losses", "epoch", "step", "history", "best"])
def test_the_comparison_fails_when_a_piece_of_the_state_is_left_out(whole, few, tmp_path, monkeypatch, left_out):
    p, expected = whole
    with monkeypatch.context() as patch, pytest.raises(BrokenOff):
        break_off(patch, (train, "train_step"), 2 * steps(p.train_size, p.batch_size) + 2)  # in the last epoch
        go_on(p, few, tmp_path)
    state = checkpoint.load(tmp_path)
    assert (state["epoch"], state["step"]) == (2, 1)
    monkeypatch.setattr(checkpoint, "load", lambda _: state)
    assert go_on(p, few, tmp_path) == expected
    state = {**checkpoint.load(tmp_path), left_out: fresh(p, left_out)}
    monkeypatch.setattr(checkpoint, "load", lambda _: state)
    try:
        assert go_on(p, few, tmp_path) != expected
    except IndexError:
        assert left_out == "history"


@pytest.mark.parametrize("whole", KINDS[:1], indirect=True)
def test_what_a_step_sees_does_not_depend_on_interruptions(whole, few, tmp_path, monkeypatch):
    p, _ = whole
    seen = []
    usual = train.train_step

    def look(p, forward, model, optimizer, scaler, images, targets):
        seen.append((images.double().sum().item(), targets.double().square().sum().item()))
        return usual(p, forward, model, optimizer, scaler, images, targets)

    monkeypatch.setattr(train, "train_step", look)
    train.fit(p, few, tmp_path, say=lambda _: None)
    for path in tmp_path.glob("checkpoint*"):
        path.unlink()
    expected, seen[:] = list(seen), []
    for calls in (3, 4, 5):
        with monkeypatch.context() as patch, pytest.raises(BrokenOff):
            break_off(patch, (checkpoint, "save"), calls)
            go_on(p, few, tmp_path)
    go_on(p, few, tmp_path)
    assert seen == expected and len(set(seen)) == p.epochs * steps(p.train_size, p.batch_size)
