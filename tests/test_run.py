"""One run from parameters to record: finished once, never mixed, and a failure leaves its reason."""

import errno
import json

import numpy as np
import pytest
import safetensors.torch
import torch

from lib import checkpoint, files, params, records, train
from lib.model import ConvMixer, count_parameters
from lib.params import NUMERICS, ParameterError, Params
from lib.records import RecordError
from lib.runs import lock, run
from lib.runs.lock import OwnerError, own
from lib.train import TrainingError


def silent(text):
    pass


@pytest.fixture
def folder(reports, tiny):
    return records.run_folder(tiny())


def test_the_record_holds_what_the_report_needs_and_agrees_with_itself(reports, tiny, cifar, folder):
    record = run.run(tiny(), silent)
    assert record == records.read_result(folder / records.RESULT)
    assert record["fingerprint"] == tiny().fingerprint and record["numerics"] == NUMERICS
    assert record["parameters"] == count_parameters(ConvMixer(8, 1, 3, 8))
    assert (record["train_images"], record["val_images"], len(record["history"])) == (320, 200, 2)
    saved = records.read_arrays(record)
    right = saved["logits"].argmax(1) == cifar["test_labels"]
    assert np.array_equal(saved["labels"], cifar["test_labels"])
    assert record["test_acc"] == pytest.approx(100 * right.mean())
    assert saved["patch_embedding"].shape == (8, 3, 8, 8) and saved["depthwise"].shape == (1, 8, 3, 3)
    assert np.mean(list(record["per_class_acc"].values())) == pytest.approx(record["test_acc"])
    model = ConvMixer(8, 1, 3, 8)
    model.load_state_dict(safetensors.torch.load_file(folder / records.WEIGHTS))
    again = train.evaluate(
        tiny(), model, model, cifar["test_images"], cifar["test_labels"], records.CIFAR10_NORMALISATION
    )
    assert again["acc"] == pytest.approx(record["test_acc"], abs=0.02)  # the plain layers round otherwise


def test_a_finished_run_keeps_only_what_is_needed(reports, tiny, folder):
    run.run(tiny(), silent)
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names == {records.RESULT, records.ARRAYS, records.WEIGHTS}


def test_checkpoints_that_a_kill_left_beside_the_record_are_not_gone_on_from(reports, tiny, folder, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(run.checkpoint, "remove", lambda folder: None)
        run.run(tiny(), silent)
    assert list(folder.glob("checkpoint*"))
    assert run.run(tiny(force=True), silent)["resumed"] == 0


def test_a_finished_run_is_skipped_and_its_record_unchanged(reports, tiny, folder, monkeypatch):
    run.run(tiny(), silent)
    before = (folder / records.RESULT).read_bytes()
    monkeypatch.setattr(run, "fit", None)  # would fail if it were called
    told = []
    run.run(tiny(), told.append)
    assert (folder / records.RESULT).read_bytes() == before
    assert "finished before" in told[0]


def test_force_trains_again_and_keeps_the_old_record_until_the_new_one_is_there(reports, tiny, folder, monkeypatch):
    run.run(tiny(), silent)
    before = (folder / records.RESULT).read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "write_record", stop)
        with pytest.raises(KeyboardInterrupt):
            run.run(tiny(force=True), silent)
    assert (folder / records.RESULT).read_bytes() == before
    assert run.run(tiny(force=True), silent)["resumed"] == 1  # it goes on with the forced training
    assert (folder / records.RESULT).read_bytes() != before


def test_a_record_of_other_parameters_is_refused_with_the_difference(reports, tiny, folder):
    run.run(tiny(), silent)
    path = folder / records.RESULT
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "fingerprint": "0" * 16, "params": {**values["params"], "lr": 0.5}}))
    with pytest.raises(RecordError, match=r"made with other parameters \(lr: 0.5 -> 0.01\)"):
        run.run(tiny(), silent)


def interrupted(p):
    """Trains `p` until its first epoch is saved."""

    def say(text):
        if "epoch 1/" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(p, say)


@pytest.mark.parametrize(
    "change, words", [({"lr": 0.02}, "lr: 0.01 -> 0.02"), ({"numerics": NUMERICS + 1}, f"numerics: {NUMERICS} -> ")]
)
def test_a_checkpoint_of_other_parameters_or_numerics_is_refused_with_the_difference(
    reports, tiny, folder, monkeypatch, change, words
):
    interrupted(tiny())
    if "numerics" in change:
        for module in (train, run, params):
            monkeypatch.setattr(module, "NUMERICS", change["numerics"])
        p = tiny()
    else:
        p = tiny(**change)
        monkeypatch.setattr(records, "run_folder", lambda p: folder)  # as if the study's file had been changed
    with pytest.raises(RecordError, match=words):
        run.run(p, silent)


def test_a_checkpoint_from_before_a_parameter_was_added_goes_on(reports, tiny, folder):
    interrupted(tiny())
    state = checkpoint.load(folder)
    state["params"] = {name: value for name, value in state["params"].items() if name not in params.ADDED}
    checkpoint.save(folder, state)
    with pytest.raises(RecordError, match="std: pixels -> images"):
        records.refuse_other(checkpoint.load(folder), tiny(std="images"), folder)
    assert run.run(tiny(), silent)["resumed"] == 1


def test_an_interrupted_run_goes_on_and_counts_it(reports, tiny, folder):
    interrupted(tiny())
    assert not (folder / records.RESULT).exists() and not (folder / records.FAILURE).exists()
    told = []
    record = run.run(tiny(), told.append)
    assert record["resumed"] == 1 and "going on from epoch 2 of 2" in told[0]


def test_a_loss_that_is_no_number_stops_with_the_place_and_the_last_good_checkpoint(reports, tiny, folder, monkeypatch):
    steps, real = [], train.train_step

    def broken(*arguments):
        steps.append(1)
        loss = real(*arguments)
        return loss * float("nan") if len(steps) == 8 else loss  # of 5 steps an epoch

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_step", broken)
        with pytest.raises(TrainingError, match="became NaN or infinite at epoch 2, step 3: lower lr"):
            run.run(tiny(), silent)
    failure = records.read_json(folder / records.FAILURE)
    assert "epoch 2, step 3" in failure["reason"] and failure["epoch"] == 1
    record = run.run(tiny(), silent)  # from the checkpoint of epoch 1
    assert record["resumed"] == 1 and not (folder / records.FAILURE).exists()


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes."),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB."),
        torch.AcceleratorError("CUDA error: out of memory", 2),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.99 GB, other allocations: 80.33 MB)."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_out_of_memory_says_what_to_lower(reports, tiny, monkeypatch, error):
    def hungry(*_):
        raise error

    monkeypatch.setattr(run, "fit", hungry)
    with pytest.raises(TrainingError, match=r"out of memory: lower batch_size \(64\), dim \(8\) or depth \(1\)"):
        run.run(tiny(), silent)


def test_a_disk_without_room_is_found_before_training(reports, tiny, monkeypatch):
    usage = type("Usage", (), {"free": 1e6})
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: usage)
    with pytest.raises(TrainingError, match="1 MB free, 20 MB needed; nothing was trained"):
        run.run(tiny(), silent)


def test_a_run_that_is_held_is_left_alone(reports, tiny, folder, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    with own(folder), pytest.raises(OwnerError, match="locked by pid"):
        run.run(tiny(), silent)


def test_an_augmentation_that_cannot_be_parsed_is_refused_before_anything_is_written(reports, tiny):
    with pytest.raises(ParameterError, match="randaugment=rand-m99: give "):
        run.run(tiny(randaugment="rand-m99"), silent)
    assert not reports.exists()


def test_an_announcement_refuses_what_cannot_be_and_does_without_a_time(reports, tiny, monkeypatch, devices):
    monkeypatch.setattr(train, "_images_per_second", lambda p: run.torch.empty(2**60))  # more than there is
    assert run.announce(tiny()).endswith("; how long it takes here could not be measured")
    monkeypatch.undo()
    monkeypatch.setattr(run.torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match="device=cuda: there is none here"):
        run.announce(tiny(device="cuda"))


def test_the_announcement_says_how_long_and_how_to_ask_for_less(reports, tiny, monkeypatch):
    assert "about " in run.announce(tiny()) and "Smaller" not in run.announce(tiny())
    monkeypatch.setattr(run, "estimate", lambda p: 40_000)
    assert "about 11 h 07 min here on cpu" in run.announce(tiny())
    assert "Smaller: -f params/studies/smoke.yaml" in run.announce(tiny())


def test_what_a_killed_writer_left_is_swept_away_by_the_next(reports, tiny):
    folder = records.run_folder(tiny())
    folder.mkdir(parents=True)
    (folder / f".checkpoint.pt.abc{files.PART}").write_bytes(b"half")
    run.run(tiny(), silent)
    assert not list(folder.glob(f".*{files.PART}"))


def test_the_room_that_is_needed_grows_with_the_network(reports, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(run.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 25e6}))
    run.need_room(tiny(), tmp_path)
    with pytest.raises(TrainingError, match="25 MB free, 54 MB needed"):
        run.need_room(Params(), tmp_path)


@pytest.mark.parametrize("broken", [records.ARRAYS, records.WEIGHTS])
def test_a_record_is_there_only_with_all_that_belongs_to_it(reports, tiny, monkeypatch, broken):
    write = files.write_bytes

    def full(path, *words, **named):
        if path.name == broken:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        write(path, *words, **named)

    for module in (files, records):
        monkeypatch.setattr(module, "write_bytes", full)
    with pytest.raises(TrainingError, match="No space left"):
        run.run(tiny(), silent)
    assert not (records.run_folder(tiny()) / records.RESULT).exists()


def test_what_is_kept_is_of_the_epoch_that_was_best_in_validation(reports, tiny, monkeypatch):
    """With a constant rate the first epoch is a training of one epoch, and validation is made to fall after it."""
    p, real, falling = tiny(schedule="constant", lr=0.03), train.evaluate, iter((90.0, 80.0))
    one, two = run.run(p.replace(epochs=1, select="last"), silent), run.run(p.replace(select="last"), silent)

    def evaluate(p, model, forward, images, labels, normalisation):
        found = real(p, model, forward, images, labels, normalisation)
        return found | {"acc": next(falling)} if len(labels) == p.val_size else found

    monkeypatch.setattr(train, "evaluate", evaluate)
    kept = run.run(p, silent)
    assert (kept["selected_epoch"], one["test_acc"] == two["test_acc"]) == (1, False)
    for name in ("test_acc", "test_loss", "per_class_acc"):
        assert kept[name] == one[name]
    assert (kept["last_test_acc"], kept["last_test_loss"]) == (two["test_acc"], two["test_loss"])
    folders = [records.folder_of("test", record["run"]) for record in (kept, one)]
    for name in (records.WEIGHTS, records.ARRAYS):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
