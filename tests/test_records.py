"""Run folders: what is written atomically, what a damaged or foreign record becomes, what `load` tells of each run."""

import json

import numpy as np
import pytest

import made
from lib import files, machine, records


@pytest.fixture
def study(tmp_path, monkeypatch):
    made.place(monkeypatch, tmp_path)
    return made.study(settings=["kernel-3", "kernel-9", "patch-1"])


def result_of(study, name):
    return records.study_folder(study.name) / "runs" / name / records.RESULT


def row(study, name="k3-p1-seed0"):
    return records.load(study).set_index("run").loc[name]


def test_every_run_of_a_study_is_a_row_finished_or_not(study):
    made.fill(study, skip=["k9-p1-seed0"])
    table = records.load(study)
    assert table["run"].tolist() == ["k3-p1-seed0", "k9-p1-seed0"]
    assert table["status"].tolist() == ["done", "missing"]
    assert table["settings"].tolist() == [("kernel-3",), ("kernel-9", "patch-1")]
    assert table["test_acc"].notna().tolist() == [True, False]


def test_an_unfinished_and_a_failed_run_say_how_far_they_are(study):
    folder = result_of(study, "k3-p1-seed0").parent
    folder.mkdir(parents=True)
    fingerprint = study.runs[0].params.fingerprint
    records.write_json(folder / records.PROGRESS, {"fingerprint": fingerprint, "history": [{}, {}]})
    assert (row(study).status, row(study).epoch, row(study).reason) == ("unfinished", 2, "at epoch 2 of 12")
    failure = {"reason": "the loss is no number", "epoch": 2, "fingerprint": fingerprint}
    records.write_json(folder / records.FAILURE, failure)
    assert (row(study).status, row(study).epoch, row(study).reason) == ("failed", 2, "the loss is no number")
    records.write_json(folder / records.FAILURE, {**failure, "fingerprint": "of other parameters"})
    assert row(study).status == "unfinished"


@pytest.mark.parametrize("content", ["{", "[]", '{"fingerprint": "OURS", "epoch": "two", "history": 3}'])
def test_what_an_unfinished_run_left_and_cannot_be_read_stands_in_no_ones_way(study, content):
    folder = result_of(study, "k3-p1-seed0").parent
    folder.mkdir(parents=True)
    for name in (records.PROGRESS, records.FAILURE):
        (folder / name).write_text(content.replace("OURS", study.runs[0].params.fingerprint))
    assert (row(study).status, row(study).epoch) == ("missing", 0)  # it goes on from its checkpoint, if it has one
    records.note_failure(folder, study.runs[0].params, "the disk is full")
    assert (row(study).status, row(study).reason) == ("failed", "the disk is full")


def no_json(text):
    return text[:100]


def not_a_number(text):
    return text.replace('"test_loss": ', '"test_loss": NaN, "x": ', 1)


def old_schema(text):
    return json.dumps({**json.loads(text), "schema": 0})


def without_history(text):
    return json.dumps({**json.loads(text), "history": []})


def without_accuracy(text):
    return json.dumps({name: value for name, value in json.loads(text).items() if name != "test_acc"})


def beyond_history(text):
    return json.dumps({**json.loads(text), "selected_epoch": 99})


def impossible_accuracy(text):
    return json.dumps({**json.loads(text), "test_acc": 101.5})


def words_in_history(text):
    values = json.loads(text)
    values["history"][0]["val_acc"] = "good"
    return json.dumps(values)


def a_list(text):
    return "[]"


def other_parameters(text):
    values = json.loads(text)
    return json.dumps({**values, "fingerprint": "0" * 16, "params": {**values["params"], "lr": 0.5}})


def changed(**values):
    return lambda text: json.dumps({**json.loads(text), **values})


def in_history(**values):
    def damage(text):
        record = json.loads(text)
        record["history"][0] |= values
        return json.dumps(record)

    return damage


DAMAGE = [
    (no_json, "not readable as a record"),
    (not_a_number, "holds NaN"),
    (old_schema, "schema 0, this code reads 2"),
    (without_history, "history is empty"),
    (without_accuracy, "test_acc is missing or no float"),
    (beyond_history, "selected_epoch is 99 of "),
    (impossible_accuracy, "an accuracy is not between 0 and 100"),
    (words_in_history, "holds something else than numbers"),
    (a_list, "not an object"),
    (other_parameters, "made with other parameters (lr: 0.5 -> "),
    (changed(selected_epoch=0), "selected_epoch is 0 of 12"),
    (changed(test_acc=-1.0), "an accuracy is not between 0 and 100"),
    (changed(last_test_acc=101.0), "an accuracy is not between 0 and 100"),
    (changed(per_class_acc={"cat": 120.0}), "an accuracy is not between 0 and 100"),
    (in_history(val_acc=100.5), "an accuracy is not between 0 and 100"),
    (in_history(train_loss=None), "an entry of history lacks one of epoch"),
]


@pytest.mark.parametrize("damage, words", DAMAGE)
def test_a_record_that_cannot_be_used_is_refused_by_name_and_its_numbers_are_not_shown(study, damage, words):
    made.fill(study)
    path = result_of(study, "k3-p1-seed0")
    path.write_text(damage(path.read_text()))
    refused = row(study)
    assert refused.status == "refused"
    assert words in refused.reason and "k3-p1-seed0/result.json" in refused.reason
    assert np.isnan(refused.test_acc) and refused.record is None
    assert row(study, "k9-p1-seed0").status == "done"


def test_a_value_that_json_cannot_hold_is_not_written(tmp_path):
    records.write_json(tmp_path / "a.json", {"x": 1})
    with pytest.raises(ValueError):
        records.write_json(tmp_path / "a.json", {"x": float("nan")})
    assert records.read_json(tmp_path / "a.json") == {"x": 1}


def test_a_write_that_breaks_off_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    files.write_bytes(tmp_path / "a", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError):
        files.write_bytes(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_arrays_are_written_as_the_same_bytes_each_time(tmp_path):
    for name in ("a", "b"):
        records.write_arrays(tmp_path / name, {"predicted": np.arange(10, dtype=np.uint8)})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_environment_says_where_a_result_comes_from():
    environment = machine.environment()
    assert environment["torch"].startswith("2.") and environment["cpu"] and environment["cores"] >= 1
    assert set(environment) >= {"python", "torchvision", "timm", "commit", "dirty", "system"}


def test_the_bench_of_each_processor_is_read_the_newest_first(tmp_path, monkeypatch):
    monkeypatch.setattr(records, "REPORTS", tmp_path)
    assert records.benches() == []
    old = {"schema": records.BENCH_SCHEMA, "made": "2026-01-01T00:00:00+00:00"}
    new = old | {"made": "2026-02-01T00:00:00+00:00"}
    for name, values in (("a", old), ("b", new), ("c", old | {"schema": 0})):
        (tmp_path / "bench").mkdir(exist_ok=True)
        records.write_json(tmp_path / "bench" / f"{name}.json", values)
    (tmp_path / "bench" / "d.json").write_text("{")
    assert records.benches() == [new, old]


def test_a_machine_is_named_by_its_gpu_or_its_processor():
    environment = {"cpu": "A Processor", "vectors": "AVX2", "threads": 2}
    assert records.machine_name({"environment": environment}) == "A Processor (AVX2, 2 threads)"
    assert records.machine_name({"environment": {"cpu": "A Processor"}, "threads": 4}) == "A Processor (4 threads)"
    assert records.machine_name({"environment": environment | {"gpu": "A GPU"}}) == "A GPU"


def test_logits_of_which_one_differs_are_not_this_records(study):
    made.fill(study)
    record = made.record(study.runs[0])
    arrays = records.read_arrays(record)
    path = made.folder_of(study, study.runs[0]) / records.ARRAYS
    flip = np.flatnonzero(arrays["logits"].argmax(1) != arrays["labels"])[0]
    arrays["logits"][flip] = np.eye(10)[arrays["labels"][flip]]  # one more is right: 0.01 %
    records.write_arrays(path, arrays)
    with pytest.raises(records.RecordError, match="not the logits of the record beside it"):
        records.read_arrays(record)


def test_a_record_from_before_its_normalisation_was_kept_has_the_deviation_that_its_run_asked_for():
    record = {"params": {"std": "images"}}
    assert records.normalisation(record) == records.Normalisation(records.MEAN, records.STD["images"])


def test_runs_that_worked_in_another_type_than_most_are_refused(home):
    settings = ["kernel-3", "kernel-5", "kernel-9", {"patch-4": {"dtype": "float32"}}]
    study = made.study(settings=settings, dtype="bfloat16")

    def work_in(dtype, *runs):
        for run in runs:
            record = made.record(run)
            record["environment"]["dtype"] = dtype
            made.write(study, run, record)

    *half, other = study.runs
    work_in("float32", *half)  # on a machine without bfloat16
    made.write(study, other, made.record(other))  # asked for float32
    assert list(records.load(study)["status"]) == ["done"] * 4
    work_in("bfloat16", *half[::2])
    table = records.load(study)
    assert list(table["status"]) == ["done", "refused", "done", "done"]
    odd = table.iloc[1]
    assert odd.record is None and np.isnan(odd.test_acc)
    assert odd.reason.startswith("reports/made/runs/k5-p1-seed0: worked in float32, most runs of the study in bfloat16")
