"""Finished runs from another machine: what is taken, what is not and why."""

import errno
import json
import shutil

import pytest

import made
from lib import files, records
from lib.data.download import DIGEST
from lib.runs import collect, lock


@pytest.fixture
def other(tmp_path, monkeypatch):
    """Two finished runs and an unfinished one in another place than this test's reports/."""
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3", "kernel-9", "patch-2"])
    for run in study.runs[:2]:
        made.write(study, run, made.record(run) | {"data_digest": DIGEST})
    made.stop(study, study.runs[2], "progress", history=[])
    (tmp_path / "reports").rename(tmp_path / "elsewhere")
    return tmp_path / "elsewhere"


def change(folder, **values):
    path = folder / records.RESULT
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_finished_runs_are_taken_whole_and_once(other, capsys):
    source = other / "made" / "runs" / "k3-p1-seed0"
    (source / records.WEIGHTS).write_bytes(b"weights")
    assert collect.main([str(other)]) == 0
    assert "2 of 2 finished runs" in capsys.readouterr().out
    target = records.REPORTS / "made" / "runs"
    assert sorted(path.name for path in target.iterdir()) == ["k3-p1-seed0", "k9-p1-seed0"]
    for name in (records.RESULT, records.ARRAYS, records.WEIGHTS):
        assert (target / "k3-p1-seed0" / name).read_bytes() == (source / name).read_bytes()
    assert collect.main([str(other)]) == 0
    assert capsys.readouterr().out.count("here already") == 2


def test_what_the_other_clone_has_published_is_not_its_own(other, capsys):
    shutil.copytree(other / "made", other / "published" / "made")
    shutil.rmtree(other / "made" / "runs" / "k3-p1-seed0")
    assert collect.main([str(other)]) == 0 and "1 of 1 finished runs" in capsys.readouterr().out
    assert collect.main([str(other / "published")]) == 0 and "2 of 2" in capsys.readouterr().out
    assert collect.main([str(other / "made")]) == 0 and "1 of 1" in capsys.readouterr().out


def test_a_run_that_trains_here_is_left_alone(other, capsys, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.1)
    folder = records.folder_of("made", "k3-p1-seed0")
    with lock.own(folder):
        assert collect.main([str(other)]) == 1
    assert "k3-p1-seed0: locked by" in capsys.readouterr().err and not (folder / records.RESULT).exists()


def test_a_folder_that_is_not_there_is_named(home, capsys):
    assert collect.main(["/nowhere/reports"]) == 2 and capsys.readouterr().err == "/nowhere/reports: no such folder\n"
    assert collect.main([""]) == 2 and capsys.readouterr().err.startswith("usage: make import FROM=")


def test_a_run_that_is_here_is_not_overwritten(other, capsys):
    assert collect.main([str(other)]) == 0
    path = records.REPORTS / "made" / "runs" / "k3-p1-seed0" / records.RESULT
    before = path.read_bytes()
    here = json.loads(before)["test_acc"]
    source = other / "made" / "runs" / "k3-p1-seed0"
    arrays = other / "made" / "runs" / "k9-p1-seed0"
    shutil.copy(arrays / records.ARRAYS, source / records.ARRAYS)
    there = json.loads((arrays / records.RESULT).read_text())["test_acc"]
    change(source, test_acc=there)
    assert collect.main([str(other)]) == 1
    assert f"with {here:.2f} % on the test set where" in (said := capsys.readouterr().err)
    assert f"has {there:.2f} %" in said and path.read_bytes() == before


@pytest.mark.parametrize(
    "values, reason",
    [
        ({"schema": 1}, "schema 1"),
        ({"fingerprint": "0" * 16}, "fingerprint"),
        ({"data_digest": "of other images"}, "other data"),
        ({"test_acc": 99.0}, "not the logits of the record"),
        ({"run": "../../x"}, "made/k3-p1-seed0 here; is params/studies/made.yaml the same on both"),
        ({"params": {"kernel": 2.5}}, "give a whole number"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_what_this_code_could_not_have_written_is_not_taken(other, capsys, values, reason):
    change(other / "made" / "runs" / "k3-p1-seed0", **values)
    assert collect.main([str(other)]) == 1
    assert reason in capsys.readouterr().err
    assert not (records.REPORTS / "made" / "runs" / "k3-p1-seed0").exists()
    assert (records.REPORTS / "made" / "runs" / "k9-p1-seed0" / records.RESULT).exists()


def test_a_folder_without_runs_is_said(tmp_path, capsys):
    assert collect.main([str(tmp_path)]) == 1 and "no finished run" in capsys.readouterr().err
    assert collect.main([]) == collect.main([""]) == collect.main(["/no/such/folder"]) == 2


def test_a_run_is_here_only_when_all_of_it_is(tmp_path, monkeypatch):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3"])
    made.write(study, study.runs[0], made.record(study.runs[0]) | {"data_digest": DIGEST})
    (tmp_path / "reports").rename(tmp_path / "elsewhere")
    write = files.write_bytes

    def full(path, content):
        if path.name == records.ARRAYS:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    monkeypatch.setattr(files, "write_bytes", full)
    assert collect.main([str(tmp_path / "elsewhere")]) == 1
    assert not (records.folder_of("made", "k3-p1-seed0") / records.RESULT).exists()


def test_published_runs_leave_out_the_weights_of_all_seeds_but_the_first(tmp_path, monkeypatch):
    made.place(monkeypatch, tmp_path)
    study = made.study(settings=["kernel-3"], seeds=(0, 1))
    for run in study.runs:
        folder = made.write(study, run, made.record(run) | {"data_digest": DIGEST})
        (folder / records.WEIGHTS).write_bytes(b"weights")
    (tmp_path / "reports").rename(tmp_path / "elsewhere")
    monkeypatch.setattr(records, "PUBLISHED", records.REPORTS)
    assert collect.main([str(tmp_path / "elsewhere")]) == 0
    there = [path.parent.name for path in records.REPORTS.glob(f"*/runs/*/{records.WEIGHTS}")]
    assert there == ["k3-p1-seed0"]
