"""Classes, calibration and agreement: against values worked out by hand."""

import re

import numpy as np
import pytest

import made
from lib import records
from lib.report import errors


@pytest.fixture
def home(tmp_path, monkeypatch):
    return made.place(monkeypatch, tmp_path)


def test_softmax_of_large_logits_is_finite():
    chances = errors.softmax(np.array([[60000.0, 0.0], [1.0, 1.0]], np.float16))
    assert chances.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_calibration_by_hand():
    """Ten images at 80 %, of which six are right, and ten at 55 %, of which all are."""
    chances = np.zeros((20, 10))
    chances[:, 0], chances[:, 1] = [0.8] * 10 + [0.55] * 10, [0.2] * 10 + [0.45] * 10
    labels = np.array([0] * 6 + [1] * 4 + [0] * 10, np.uint8)
    confidence, accuracy, error = errors.calibration_of(chances, labels)
    assert (confidence, accuracy) == (pytest.approx(67.5), pytest.approx(80.0))
    assert error == pytest.approx(0.5 * 20 + 0.5 * 45)


def test_a_network_that_is_as_often_right_as_it_says_has_no_error():
    random = np.random.default_rng(0)
    top = random.uniform(0.5, 1, 200_000)
    chances = np.stack([top, 1 - top], axis=1)
    labels = (random.random(200_000) > top).astype(np.uint8)
    assert errors.calibration_of(chances, labels)[2] < 0.5


def test_classes_confusion_and_agreement_are_of_all_settings_but_the_sweep(home):
    study = made.study(seeds=range(2))
    made.fill(study)
    runs = records.load(study)
    assert set(errors.outputs(runs)) == {"kernel-3", "kernel-5", "kernel-7", "kernel-9", "patch-2", "patch-4"}
    table = errors.by_class(runs)
    assert list(table["class"]) == list(records.CLASSES)
    assert table["mean"].mean() == pytest.approx(runs[runs["lr"] == runs["lr"][0]]["test_acc"].mean(), abs=2)
    assert (table["best_accuracy"] >= table["mean"]).all() and (table["mean"] >= table["worst_accuracy"]).all()
    # A made-up network takes a class for the next one.
    said = errors.confusion(runs, "patch-4").get_label()
    true, taken = re.search(r"most often (\w+) is taken for (\w+)", said).groups()
    assert (records.CLASSES.index(true) + 1) % 10 == records.CLASSES.index(taken)
    assert "between seeds of one setting" in errors.agreement(runs).get_label()
    assert len(errors.calibration(runs)) == 6 and errors.reliability(runs).axes


@pytest.mark.filterwarnings("error")
def test_with_one_seed_a_setting_the_agreement_is_that_between_settings_and_nothing_is_warned_of(home):
    study = made.study()
    made.fill(study)
    said = errors.agreement(records.load(study)).get_label()
    assert re.fullmatch(r"Two networks agree on \d+ % of test images between settings\.", said)


def test_without_runs_there_is_nothing(home):
    runs = records.load(made.study())
    assert errors.by_class(runs).empty and errors.calibration(runs).empty
    assert errors.confusion(runs) is errors.agreement(runs) is errors.reliability(runs) is None
