"""The published figures hold together as far as the paper itself says so."""

import subprocess
import sys

import numpy as np
import pytest

from lib.report import published


def test_the_differences_that_the_study_prints():
    printed = {"kernel-3": -7.96, "kernel-9": -6.94, "patch-1": -5.91, "patch-4": -11.65, "baseline": -6.90}
    for name, difference in printed.items():
        figure = published.OVERALL[name]
        assert figure.accuracy - published.original(figure.kernel, figure.patch).accuracy == pytest.approx(difference)
    for setting, difference in {"kernel-5": -8.21, "kernel-7": -7.40, "patch-2": -8.70}.items():
        figure = published.printed(setting)
        assert figure.accuracy - published.original(figure.kernel, figure.patch).accuracy == pytest.approx(difference)


def test_the_abstracts_gain_and_the_inconsistent_baseline():
    assert published.printed("kernel-9").accuracy - published.printed("kernel-3").accuracy == pytest.approx(3.29)
    assert published.all_printed(9, 1) == (88.94, 88.98, 89.97)
    assert published.BASELINE.accuracy == 88.94


def test_table_v_divides():
    for row in published.COMPUTE.values():
        assert row.hours * 60 / row.epochs == pytest.approx(row.minutes_per_epoch)


def test_the_curves_end_where_the_tables_say():
    for figure in (*published.KERNEL, *published.PATCH):
        setting = f"kernel-{figure.kernel}" if figure in published.KERNEL else f"patch-{figure.patch}"
        epochs, accuracies = published.curve(setting)
        assert epochs[-1] == published.EPOCHS and accuracies[-1] == published.last_epoch(setting) <= figure.accuracy
    assert np.isnan(published.last_epoch("kernel-11"))
    for lr, best in published.SWEEP.items():
        epochs, accuracies = published.curve("sweep", lr)
        assert epochs == list(range(1, published.SWEEP_EPOCHS + 1))
        assert max(accuracies) == pytest.approx(best, abs=0.06)


def test_every_figure_is_sourced_and_second_hand_ones_say_so():
    figures = (
        published.BASELINE,
        *published.KERNEL,
        *published.PATCH,
        *published.ORIGINAL,
        *published.READINGS,
        *published.CONTEXT,
    )
    for figure in (*figures, *published.OVERALL.values()):
        assert figure.source and 50 < figure.accuracy < 100
    assert all(figure.source.startswith("second-hand") for figure in published.READINGS)
    assert {published.original(9, 2).accuracy, published.original(5, 1).accuracy} == {95.00, 95.19}


@pytest.mark.parametrize("setting", ["kernel-11", "patch-8", "kernel-", "lr-1e-3", "depth-4"])
def test_what_was_not_published_is_none(setting):
    assert published.printed(setting) is None


def test_imports_the_standard_library_only():
    code = (
        "import sys; import lib.report.published; print([m for m in ('numpy', 'pandas', 'torch') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
