"""Classes, calibration and agreement: against values worked out by hand."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import made
from lib import records
from lib.report import errors


def test_softmax_of_large_logits_is_finite():
    probabilities = errors.softmax(np.array([[60000.0, 0.0], [1.0, 1.0]], np.float16))
    assert probabilities.tolist() == [[1.0, 0.0], [0.5, 0.5]]


def test_calibration_by_hand():
    """Ten images at 80 %, of which six are right, and ten at 55 %, of which all are."""
    probabilities = np.zeros((20, 10))
    probabilities[:, 0], probabilities[:, 1] = [0.8] * 10 + [0.55] * 10, [0.2] * 10 + [0.45] * 10
    labels = np.array([0] * 6 + [1] * 4 + [0] * 10, np.uint8)
    confidence, accuracy, error = errors.calibration_of(probabilities, labels)
    assert (confidence, accuracy) == (pytest.approx(67.5), pytest.approx(80.0))
    assert error == pytest.approx(0.5 * 20 + 0.5 * 45)


def test_a_network_that_is_as_often_right_as_it_says_has_no_error():
    random = np.random.default_rng(0)
    top = random.uniform(0.5, 1, 200_000)
    probabilities = np.stack([top, 1 - top], axis=1)
    labels = (random.random(200_000) > top).astype(np.uint8)
    assert errors.calibration_of(probabilities, labels)[2] < 0.5


def test_classes_confusion_and_agreement_are_of_all_settings_but_the_sweep(home):
    study = made.study(seeds=range(2))
    made.fill(study)
    runs = records.load(study)
    assert set(errors.outputs(runs)) == {f"k={k}, p={p}" for k, p in ((3, 1), (5, 1), (7, 1), (9, 1), (9, 2), (9, 4))}
    table = errors.by_class(runs)
    assert list(table["class"]) == list(records.CLASSES)
    assert table["mean"].mean() == pytest.approx(runs[runs["lr"] == runs["lr"][0]]["test_acc"].mean(), abs=2)
    assert (table["best_accuracy"] >= table["mean"]).all() and (table["mean"] >= table["worst_accuracy"]).all()
    (best,) = errors.best_and_its_mistake(runs)
    assert re.match(r"Of 6 settings `k=9, p=1` has the best accuracy: \d+\.\d+ ± \d+\.\d+ % \(n=2\)\. Most", best)
    # A made-up network takes a class for the next one.
    said = errors.confusion(runs).get_label()
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
    assert errors.best_and_its_mistake(runs) == []
    assert errors.confusion(runs) is errors.agreement(runs) is errors.reliability(runs) is None


def test_mistakes_are_those_with_the_highest_probability():
    """Four images: right at 99 %; a cat taken for a dog at 90 %; a ship for a truck at 95 %; right at 80 %."""
    labels = np.array([0, 3, 8, 9])
    probabilities = np.zeros((4, 10))
    probabilities[range(4), [0, 5, 9, 9]] = [0.99, 0.90, 0.95, 0.80]
    probabilities[:, 1] += 1 - probabilities.sum(1)
    images = np.arange(4, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 3), np.uint8)
    drawn = errors.mistakes_of(images, labels, probabilities)
    assert drawn.get_label().endswith("probability: a ship for a truck (95.0 %); a cat for a dog (90.0 %).")
    shown = [axes.images[0].get_array() for axes in drawn.axes if axes.images]
    assert [(image == value).all() for image, value in zip(shown, (2, 1), strict=True)] == [True, True]
    assert len([axes for axes in errors.mistakes_of(images, labels, probabilities, count=1).axes if axes.images]) == 1
    assert errors.mistakes_of(images[:1], labels[:1], probabilities[:1]) is None


def test_mistakes_need_the_images_that_the_logits_are_of(home):
    study = made.study(seeds=range(2))
    made.fill(study)
    runs = records.load(study)
    images = np.zeros((10_000, 32, 32, 3), np.uint8)
    cifar = SimpleNamespace(test_images=images, test_labels=made.LABELS)
    assert len(errors.mistakes(runs, cifar).axes) == 12
    assert errors.mistakes(runs, None) is None
    assert errors.mistakes(runs, SimpleNamespace(test_images=images, test_labels=made.LABELS[::-1])) is None
    assert errors.mistakes(records.load(made.study("none")), cifar) is None


def test_one_network_has_a_confusion_of_its_own():
    labels = np.repeat(np.arange(10), 10)
    probabilities = np.eye(10)[labels]
    probabilities[30:34] = np.eye(10)[5]  # four of ten cats
    assert (
        "Confusion of mine (n=1): most often cat is taken for dog (40 %)."
        in errors.confusion_of([(probabilities, labels)], "mine").get_label()
    )
