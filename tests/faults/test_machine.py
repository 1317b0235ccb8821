"""No such device, no more memory, a loss that is no number, a damaged checkpoint: in real processes."""

import pytest
import torch
from test_disks import whole_checkpoints

from lib import checkpoint, records


@pytest.mark.fault(12, "device=cuda in a run")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_no_such_device(attempts, seen):
    run = attempts(device="cuda")
    (end,) = run(["end"])
    assert end["status"] == 1
    assert end["says"] == "TrainingError: device=cuda: there is none here, give device=cpu or auto"
    assert not run.reports.exists()
    seen(f"'{end['says']}', nothing written")


@pytest.mark.fault(27, "lr 1e30, and one at which the weights overflow while the loss is still a number (1e39)")
@pytest.mark.parametrize("lr", [1e30, 1e39])
def test_a_training_that_diverges(attempts, seen, lr):
    run = attempts(lr=lr)
    (end,) = run(["end"])
    assert end["status"] == 1
    assert "became NaN or infinite at epoch 1, step " in end["says"] and "\n" not in end["says"]
    for path in run.folder.glob("checkpoint*.pt"):
        state = checkpoint._read(path)
        assert all(w.isfinite().all() for w in state["model"].values()), f"{path.name} holds a weight that is no number"
    failure = records.read_json(run.folder / records.FAILURE)
    assert failure["reason"] in end["says"]
    seen(f"'{end['says'].split(': ', 1)[1]}'")


@pytest.mark.fault(27, "lr so large that only the evaluation overflows")
def test_an_evaluation_that_is_no_number(attempts, seen):
    run = attempts(lr=1e18, epochs=1, train_size=32, weight_decay=0)
    (end,) = run(["end"])
    assert end["status"] == 1
    assert "epoch 1" in end["says"] and "\n" not in end["says"]
    seen(f"'{end['says'].split(': ', 1)[1]}'")


@pytest.mark.fault(30, "training steps with 40 MB more than there was before them (RLIMIT_AS)")
@pytest.mark.parametrize("native", [True, False])
def test_out_of_memory(attempts, seen, native):
    run = attempts(dim=256, depth=8, patch=1, batch_size=64, native=native)
    (end,) = run(["memory", 40])
    assert end["status"] == 1
    assert "out of memory: lower batch_size (64), dim (256) or depth (8)" in end["says"]
    seen(f"'{end['says'].splitlines()[-1].split(': ', 1)[1]}'")


@pytest.mark.fault(21, "last checkpoint of a killed run overwritten; killed again between the renames of the next save")
def test_a_damaged_checkpoint_never_replaces_the_good_one(attempts, whole, seen):
    run = attempts()
    run(["steps", 8, 0.5])
    last = run.folder / records.CHECKPOINT
    last.write_bytes(b"garbage")
    (end,) = run(["second rename", 1])
    assert "going on from the one before" in end["says"]
    assert len(whole_checkpoints(run)) == 1
    assert run(["end"])[0]["status"] == 0
    assert run.outcome() == whole() and not run.left_over()
    seen("said, the previous taken and kept; bit-identical at the end")
