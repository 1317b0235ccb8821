"""The model cards beside the published weights: there for all of them, and what the records say."""

import re

import numpy as np
import pytest

from lib import records
from lib.report import cards, errors
from made import place, record, study, write

RUNS = records.with_weights(records.PUBLISHED)


@pytest.mark.parametrize(("folder", "values"), RUNS, ids=[f"{v['study']}-{v['run']}" for _, v in RUNS])
def test_a_published_card_is_what_its_record_says(folder, values):
    committed = (folder / cards.CARD).read_text(encoding="utf-8")
    assert committed == cards.card(values, records.read_arrays(values, folder))


def test_there_is_a_card_exactly_where_there_are_weights():
    assert {path.parent for path in records.PUBLISHED.glob(f"*/runs/*/{cards.CARD}")} == {folder for folder, _ in RUNS}
    assert RUNS


def test_accuracies_by_class_agree_with_the_record():
    """They are counted from the logits; the record's were counted in training."""
    folder, values = RUNS[0]
    rows = re.findall(r"^\| (\w+) \| ([\d.]+) \| ", cards.card(values, records.read_arrays(values, folder)), re.M)
    assert {name: float(right) for name, right in rows} == pytest.approx(values["per_class_acc"], abs=0.051)


def test_a_class_that_is_taken_for_another_and_one_that_never_is():
    labels = np.array([0] * 4 + [1] * 4)
    probabilities = np.eye(10)[[0, 3, 3, 5, 1, 1, 1, 1]]
    rows = cards.by_class(errors.taken_for([(probabilities, labels)]), records.CLASSES)
    assert rows[0] == "| airplane | 25.0 | cat (50.0 %) |" and rows[1] == "| automobile | 100.0 | – |"


def test_too_sure_and_not_sure_enough():
    probabilities = np.full((4, 10), 0.02)
    probabilities[:, 0] = 0.82
    assert "too sure by 32.0 points" in cards.calibration(probabilities, np.array([0, 0, 1, 2]))
    assert "not sure enough by 18.0 points" in cards.calibration(probabilities, np.zeros(4, int))


def test_cards_follow_the_weights(monkeypatch, tmp_path):
    place(monkeypatch, tmp_path)
    made = study(select="best_test", dim=256, depth=8, epochs=30)
    run, other = made.runs[:2]
    folder, bare = (write(made, one, record(one, leak=True)) for one in (run, other))
    (folder / records.WEIGHTS).touch()
    (bare / cards.CARD).write_text("of weights that have gone")
    assert cards.write(records.REPORTS) == [folder / cards.CARD] and not (bare / cards.CARD).exists()
    text = (folder / cards.CARD).read_text(encoding="utf-8")
    assert "a leak" in text and "Not the paper's experiment" not in text and f"RUN=made/{run.name}" in text
