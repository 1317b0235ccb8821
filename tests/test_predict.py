"""`make predict`: the published network that is best in validation, its probabilities, a line for what goes wrong."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from lib import explore, predict, records
from lib.study import ROOT


@pytest.fixture(autouse=True)
def no_runs_of_this_machine(tmp_path, monkeypatch):
    """Whoever runs the tests may have trained runs of the same names."""
    monkeypatch.setattr(records, "REPORTS", tmp_path / "reports")
    predict.network.cache_clear()


@pytest.fixture
def cat(tmp_path, cifar):
    """The first cat of the test images, as a file whose name has a space and an apostrophe."""
    path = tmp_path / "Li's cat.png"
    Image.fromarray(cifar["test_images"][np.flatnonzero(cifar["test_labels"] == 3)[0]]).save(path)
    return path


def test_the_best_in_validation_is_taken(monkeypatch, tmp_path):
    """Among all that are published, and when that one has lost its weights the second best."""
    published = records.with_weights(records.PUBLISHED)
    every = [found for found in published if records.val_acc(found[1]) >= 0]  # some have no validation split
    every.sort(key=lambda found: -records.val_acc(found[1]))
    assert predict.chosen() == every[0][0]
    for folder, _ in published:
        shutil.copytree(folder, tmp_path / folder.relative_to(records.PUBLISHED))
    monkeypatch.setattr(records, "PUBLISHED", tmp_path)
    (predict.chosen() / records.WEIGHTS).unlink()
    assert records.val_acc(records.read_result(predict.chosen() / records.RESULT)) == records.val_acc(every[1][1])


def test_the_probabilities_are_the_softmax_of_the_record_s_logits(cat, cifar):
    """The record's are of bfloat16 and in float16; these are float32."""
    found = predict.predict(cat, "quick/k9-p1-seed0")
    arrays = records.read_arrays(predict.network("quick/k9-p1-seed0")[0], records.PUBLISHED / "quick/runs/k9-p1-seed0")
    logits = arrays["logits"][np.flatnonzero(cifar["test_labels"] == 3)[0]].astype(float)
    expected = 100 * np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(found[list(records.CLASSES)], expected, atol=2)
    assert found.is_monotonic_decreasing and found.sum() == pytest.approx(100, abs=1e-3)


def test_a_run_of_this_machine_comes_before_the_published_one_of_that_name(cat, capsys, tmp_path, monkeypatch):
    published, own = records.PUBLISHED / "quick/runs/k9-p4-seed0", records.folder_of("quick", "k9-p4-seed0")
    assert predict.chosen("quick/k9-p4-seed0") == published
    shutil.copytree(published, own)
    assert predict.chosen("quick/k9-p4-seed0") == own
    assert predict.main([str(cat), "--run", "quick/k9-p4-seed0"]) == 0 and str(own) in capsys.readouterr().out
    (own / records.WEIGHTS).unlink()
    assert predict.chosen("quick/k9-p4-seed0") == published


def test_it_says_which_network_and_how_good(cat, capsys):
    assert predict.main([str(cat), "--run", "quick/k9-p4-seed0"]) == 0
    printed = capsys.readouterr().out
    record = predict.network("quick/k9-p4-seed0")[0]
    assert "quick/k9-p4-seed0: ConvMixer-32/4, k=9, p=4" in printed and f"{record['test_acc']:.2f} %" in printed
    assert str(cat) in printed and len([line for line in printed.splitlines() if line.startswith("  ")]) == 3


def test_a_runs_folder_may_be_given_and_one_that_is_not_there_is_one_line(cat, capsys):
    folder = records.PUBLISHED / "quick" / "runs" / "k9-p4-seed0"
    assert predict.chosen(str(folder)) == folder
    for run in ("quick/k9-p4-seed9", "no", "/", "../quick/k9-p4-seed0", "quick/k9-p1-seed1"):
        assert predict.main([str(cat), "--run", run]) == 1
        out, err = capsys.readouterr()
        assert not out and err.count("\n") == 1


def test_several_pictures_and_what_is_none_beside_them(cat, capsys, tmp_path):
    assert predict.main([str(cat), str(tmp_path), str(tmp_path / "missing.jpg"), str(cat)]) == 1
    out, err = capsys.readouterr()
    assert out.count(str(cat)) == 2 and err.count("\n") == 2 and "a folder" in err and "no such file" in err


def test_make_hands_any_file_name_on_whole(cat):
    command = ["make", "--no-print-directory", "-o", f"{sys.prefix}/.ready", f"VENV={sys.prefix}"]
    command += ["predict", f"IMAGE={cat}", "RUN=quick/k9-p1-seed0"]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (made.returncode, made.stderr) == (0, "") and f"\n{cat}\n" in made.stdout


def test_the_network_needs_no_data(monkeypatch, cat):
    monkeypatch.setattr(explore.datasets, "read", None)
    assert len(predict.predict(cat)) == 10
