"""Accuracy against cost: the line that no setting beats, by hand, and what is not compared."""

import pandas as pd

import made
from lib import records
from lib.report import cost

SPEED, MACS, MEMORY = cost.COSTS


def test_the_line_holds_what_no_other_beats_in_both():
    """b is beaten by a, which is faster and better; d by c at the same speed; a and c give up something each."""
    table = pd.DataFrame({
        "setting": list("abcd"), "accuracy": [80.0, 79.0, 90.0, 88.0],
        "fastest_images_per_second": [900.0, 800.0, 300.0, 300.0], "forward_macs": [5.0, 4.0, 9.0, 3.0],
    })  # fmt: skip
    assert list(cost.pareto(table, SPEED)["setting"]) == ["c", "a"]
    assert list(cost.pareto(table, MACS)["setting"]) == ["d", "c"]  # a and b cost more than d and are worse


def test_of_two_equal_settings_neither_beats_the_other():
    table = pd.DataFrame({"setting": ["a", "b"], "accuracy": [80.0, 80.0], "forward_macs": [5.0, 5.0]})
    assert len(cost.pareto(table, MACS)) == 2


def test_a_configuration_is_one_point_and_the_sweep_is_none(home):
    table = cost.points(made.runs(made.study(seeds=range(3))))
    assert list(table["setting"]) == ["k=3, p=1", "k=5, p=1", "k=7, p=1", "k=9, p=1", "k=9, p=2", "k=9, p=4"]
    assert (table["n"] == 3).all() and table["half"].notna().all()
    assert table["forward_macs"][0] == 30  # millions


def test_two_settings_of_one_k_and_p_are_two_points(home):
    table = cost.points(made.runs(made.study(settings=["kernel-9", {"patch-1": {"epochs": 5}}])))
    assert list(table["setting"]) == ["k=9, p=1", "patch-1"]


def test_each_point_is_drawn_and_those_on_the_line_are_named(home):
    runs = made.runs(made.study())
    drawn = cost.accuracy_against_cost(runs)
    assert all(c.axis in axes.get_xlabel() for axes, c in zip(drawn.axes, cost.COSTS, strict=True))
    assert {text.get_text() for text in drawn.axes[0].texts} > {"k=3, p=1", "k=9, p=4"}
    (said,) = cost.worth(runs)
    # Made-up accuracies rise with k and fall with p; at p=1 all made-up networks have the same MACs and memory.
    assert list(cost.pareto(cost.points(runs), MACS)["setting"]) == ["k=9, p=4", "k=9, p=2", "k=9, p=1"]
    assert "`k=9, p=4`, `k=9, p=2`, `k=9, p=1` by multiply-accumulates" in said
    assert said in drawn.get_label()


def test_speeds_are_of_the_one_machine_that_trained_most_settings(home):
    study = made.study()
    made.fill(study)
    other = made.record(study.runs[0])
    other["environment"] = other["environment"] | {"cpu": "Another Processor"}
    made.write(study, study.runs[0], other)
    runs = records.load(study)
    table = cost.points(runs)
    own = table["setting"] == f"k={study.runs[0].params.kernel}, p={study.runs[0].params.patch}"
    assert own.sum() == 1 and table.loc[own, "fastest_images_per_second"].isna().all()
    assert table.loc[~own, "fastest_images_per_second"].notna().all() and table["accuracy"].notna().all()
    assert cost.worth(runs)[1].endswith("alone.") and "Another Processor" not in cost.worth(runs)[1]


def test_a_cost_is_of_the_run_that_was_disturbed_least(home):
    study = made.study(settings=["kernel-3", "kernel-9"], seeds=(0, 1))
    made.fill(study)
    slow, large = (made.record(run) for run in study.runs_of("kernel-3"))
    for entry in slow["history"]:
        entry["images_per_second"] = 1.0
    made.write(study, study.runs_of("kernel-3")[0], slow | {"peak_memory_mb": 900.0})
    made.write(study, study.runs_of("kernel-3")[1], large | {"peak_memory_mb": 100.0, "resumed": 1})
    row = cost.points(records.load(study)).set_index("setting").loc["k=3, p=1"]
    assert row["fastest_images_per_second"] == max(entry["images_per_second"] for entry in large["history"])
    assert row["peak_memory_mb"] == 900  # a run that went on from a checkpoint has held that, too


def test_fewer_than_two_settings_have_nothing_to_compare(home):
    one = made.runs(made.study(settings=["patch-4"], seeds=range(2)))
    for runs in (one, records.load(made.study("none"))):
        assert cost.accuracy_against_cost(runs) is None and cost.worth(runs) == []
