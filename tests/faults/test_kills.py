"""SIGKILL at any moment: the run goes on to the same bits."""

import random
import signal
import statistics
import time

import pytest
import torch

from lib import checkpoint, records, train
from lib.params import Params

KILLS = 20
SEED = 19  # of the moments


def moments(kills: int) -> list[list]:
    """When each process is killed: after 1 to 3 steps and a share of the next, anywhere in it or in its checkpoint."""
    draw = random.Random(SEED)
    return [["steps", draw.randint(1, 3), round(draw.random(), 3)] for _ in range(kills)]


MOMENTS = moments(KILLS)
SAID = ", ".join(f"{n + part:.2f}" for _, n, part in MOMENTS)


@pytest.mark.timeout(900)
@pytest.mark.fault(19, f"{KILLS} SIGKILLs in one training, each after so many steps (seed {SEED}): {SAID}")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("workers", [0, 2])
def test_killed_at_random_moments(attempts, whole, seen, dtype, workers):
    killed = attempts(dtype=dtype, workers=workers)
    ends = killed(*MOMENTS, ["end"])
    assert [end["status"] for end in ends] == [-signal.SIGKILL] * KILLS + [0]
    resumed = records.read_result(killed.folder / records.RESULT)["resumed"]
    assert killed.outcome() == whole(dtype)
    assert not killed.left_over()
    seen(f"{dtype}, {workers} workers: bit-identical, gone on {resumed} times")


@pytest.mark.fault(19, "the time of a checkpoint of ConvMixer-256/8 (k=9, p=4, the median of 5)")
def test_a_checkpoint_costs_less_than_a_hundredth(tmp_path, seen):
    p = Params(patch=4)
    model, forward, _ = train.build(p, torch.device("cpu"))
    optimizer, scaler = train.make_optimizer(p, model), torch.amp.GradScaler("cpu", enabled=False)
    images, targets = torch.randn(64, 3, 32, 32), torch.full((64, 10), 0.1)
    best = {"score": 0.0, "epoch": 1, "model": model.state_dict()}

    def save():
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "best": best}
        return checkpoint.save(tmp_path, state)

    step = median_time(lambda: train.train_step(p, forward, model, optimizer, scaler, images, targets))
    cost, size = median_time(save), save()
    share = cost / (60 * p.checkpoint_minutes)
    assert share < 0.01
    text = f"a checkpoint of {size / 1e6:.0f} MB takes {cost:.2f} s, {cost / step:.1f} of a step ({step:.2f} s)"
    seen(f"{text}, {100 * share:.3f} % of {p.checkpoint_minutes:.0f} minutes")


def median_time(function) -> float:
    """Seconds of a call, after one that does not count."""
    times = []
    for _ in range(6):
        begun = time.perf_counter()
        function()
        times.append(time.perf_counter() - begun)
    return statistics.median(times[1:])


@pytest.mark.fault(19, "a training without the optimizer's moments from the checkpoint")
def test_the_comparison_can_fail(attempts, whole, seen):
    killed = attempts()
    killed(*MOMENTS[:3], ["end"], leave_out="optimizer")
    assert killed.outcome()["weights"] != whole()["weights"]
    assert killed.outcome()["history"] != whole()["history"]
    seen("control: weights and history differ")


@pytest.mark.timeout(600)
@pytest.mark.fault(20, "SIGKILL inside a save: writing, before the flush, before, between and after the renames")
def test_killed_inside_a_save(attempts, whole, seen):
    killed = attempts()
    places = ["write", "flush", "first rename", "second rename", "renamed"]
    killed(["steps", 4, 0.5])  # so that there are two checkpoints
    done = []
    for place in places:
        (end,) = killed([place, 3])
        assert end["status"] == -signal.SIGKILL
        state = checkpoint.load(killed.folder)
        done.append(20 * state["epoch"] + state["step"])
    assert done == sorted(done) and done[-1] > 2 * len(places)
    assert killed(["end"])[0]["status"] == 0
    assert killed.outcome() == whole()
    assert not killed.left_over()
    seen(f"loaded after each kill ({', '.join(places)}), at steps {done}; the end is bit-identical, no litter")
