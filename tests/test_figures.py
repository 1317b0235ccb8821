"""Each figure is drawn from data, says what it shows, and is the same to the byte when drawn again."""

import re

import made
from lib import records
from lib.report import cost, figures, style, tables

OF_RUNS = (figures.learning_rates, figures.baseline, figures.kernel, figures.patch)


def test_the_same_records_give_the_same_bytes(home):
    study = made.study(seeds=range(2))
    runs = made.runs(study)
    for kind in ("png", "svg"):
        for draw, *data in ((figures.kernel, runs), (figures.workflow, study, runs)):
            first, again = (style.save(draw(*data), kind) for _ in range(2))
            assert first == again and b"Matplotlib" not in first.replace(b"matplotlib.org", b"")


def test_alternative_text_holds_the_numbers_of_the_table(home):
    runs = made.runs(made.study())
    for draw, table in ((figures.kernel, tables.kernel(runs)), (figures.patch, tables.patch(runs))):
        text = draw(runs).get_label()
        assert all(f"{value:.2f}" in text for column in ("ours", "paper", "original") for value in table[column])
    assert f"{tables.learning_rates(runs)['ours'][0]:.1f} %" in figures.learning_rates(runs).get_label()


def test_one_seed_has_no_error_bar_and_several_have(home):
    one, five = made.runs(made.study("one")), made.runs(made.study("five", seeds=range(5)))
    assert not figures.kernel(one).axes[0].containers
    assert len(figures.kernel(five).axes[0].containers) == 4


def test_a_missing_setting_is_marked(home):
    study = made.study()
    runs = made.runs(study, skip={study.runs_of("patch-2")[0].name})
    drawn = figures.patch(runs)
    assert [t.get_text() for t in drawn.axes[1].get_xticklabels()] == ["p=1", "p=2\nno result", "p=4"]
    assert "p=2 missing" in drawn.get_label()


def test_an_axis_that_does_not_start_at_zero_says_so(home):
    runs = made.runs(made.study())
    for draw, which in ((figures.learning_rates, 0), (figures.baseline, 1), (figures.kernel, 0), (figures.patch, 0)):
        axes = draw(runs).axes[which]
        assert f"axis starts at {axes.get_ylim()[0]:.0f} %" in [text.get_text() for text in axes.texts]
    assert figures.baseline(runs).axes[0].get_ylim()[0] == 0


def test_without_runs_only_published_figures_are_drawn(home):
    runs = records.load(made.study())
    assert figures.learning_rates(runs) is None and figures.baseline(runs) is None
    assert "k=3 missing" in figures.kernel(runs).get_label()


def test_the_workflow_names_the_files_that_there_are(home):
    study = made.study(seeds=range(2))
    text = figures.workflow(study, made.runs(study)).get_label()
    for part in (
        "params/studies/made.yaml",
        "10 settings, by seed: 18 different runs",
        "18 of 18 runs",
        "result.json",
    ):
        assert part in text


def test_no_figure_repeats_its_caption_as_a_title(home):
    runs = made.runs(made.study())
    for draw in OF_RUNS:
        assert not any(axes.get_title() for axes in draw(runs).axes)


def test_speed_lies_inside_its_logarithmic_axis_with_plain_numbers():
    assert figures.speed(None) is None
    axes = figures.speed(made.bench(default=3, channels_last=9, ours=36)).axes[0]
    low, high = axes.get_ylim()
    assert 0 < low < 3 and 36 < high < 360
    axes.figure.canvas.draw()
    shown = [float(text.get_text()) for text in axes.get_yticklabels()]
    assert len([value for value in shown if low <= value <= high]) >= 3


def test_each_configuration_has_its_curves_and_the_sweep_has_not(home):
    runs = made.runs(made.study(seeds=range(2)))
    drawn = figures.curves(runs)
    titles = [axes.get_title() for axes in drawn.axes if axes.get_title()]
    assert titles == ["k=3, p=1", "k=5, p=1", "k=7, p=1", "k=9, p=1", "k=9, p=2", "k=9, p=4"]
    last = [record["history"][-1]["val_acc"] for record in runs[runs["kernel"] == 3]["record"]]
    assert re.search(
        rf"k=3, p=1: \d+\.\d % on training images and {sum(last) / 2:.1f} % on validation", drawn.get_label()
    )
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["training images", "validation images"]
    assert figures.curves(records.load(made.study("none"))) is None


def test_curves_have_the_papers_values_where_the_budget_is_the_papers(home):
    settings = ["kernel-9", "patch-1", "cut-30"]
    runs = made.runs(
        made.study(settings=settings, dim=256, depth=8, epochs=30, val_size=0, select="best_test"), leak=True
    )
    for record in runs["record"]:
        for epoch in record["history"]:
            epoch["val_acc"] = None
    whole, cut = figures.curves(runs).axes
    theirs = [line.get_xydata().tolist() for line in whole.lines if "paper" in line.get_label()]
    assert theirs == [[[10, 81.97], [20, 86.87], [30, 88.74]], [[10, 85.12], [20, 88.97], [30, 86.54]]]
    assert not any("paper" in line.get_label() for line in cut.lines)
    assert "% on test images" in whole.figure.get_label()


def test_networks_without_a_kernel_have_curves_and_a_cost_as_well(home):
    runs = made.runs(made.study(settings=["patch-4", "cnn", "vit"]))
    assert [axes.get_title() for axes in figures.curves(runs).axes][:3] == ["k=9, p=4", "cnn", "vit"]
    assert list(cost.points(runs)["setting"]) == ["k=9, p=4", "cnn", "vit"]


def test_where_nothing_is_watched_the_curve_of_the_training_images_stays(home):
    runs = made.runs(made.study(settings=["patch-4"], val_size=0, select="last"))
    for record in runs["record"]:
        record["history"] = [{**epoch, "val_acc": None} for epoch in record["history"]]
    drawn = figures.curves(runs)
    assert [text.get_text() for text in drawn.legends[0].get_texts()] == ["training images"]
    assert re.search(r"k=9, p=4: \d\d\.\d % on training images\.$", drawn.get_label())
