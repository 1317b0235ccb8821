"""Studies of other images than CIFAR-10: nothing published stands beside them, and they count for no claim."""

import numpy as np
import pytest

import made
from lib import records
from lib import study as studies
from lib.report import cards, cells, claims, errors, figures, front, readme, sentences, tables
from lib.report.play import build


@pytest.fixture(params=["cifar100", "folder:my pets"])
def other(home, request):
    """A study of other data, with a record of every run; and its runs."""
    study = made.study(dataset=request.param, seeds=range(2), settings=[*made.SETTINGS, "k5-p2"], dim=256, depth=8)
    made.fill(study, leak=True)
    return study, records.load(study)


def theirs(table):
    return [name for name in table if name.startswith(("paper", "original", "ours_minus", "published"))]


MAKERS = (tables.baseline, tables.kernel, tables.patch, tables.others, tables.learning_rates, tables.selection)


@pytest.mark.parametrize("make", [*MAKERS, tables.compute, lambda runs: tables.steps(runs, "kernel")])
def test_a_table_holds_no_published_number(other, make):
    table = make(other[1])
    assert len(table) and theirs(table)
    assert not [name for name in theirs(table) if any(value == value and value != "" for value in table[name])]


@pytest.mark.parametrize("make", MAKERS)
def test_the_same_table_of_cifar_10_holds_some(home, make):
    study = made.study(seeds=range(2), settings=[*made.SETTINGS, "k5-p2"])
    made.fill(study)
    table = make(records.load(study))
    assert [name for name in theirs(table) if any(value == value and value != "" for value in table[name])]


def test_no_column_of_them_is_shown(other):
    from lib.report import show

    for make in (*MAKERS, tables.compute):
        headings = show.as_text(make(other[1]), make.columns).columns
        assert not [name for name in headings if "paper" in name or "original" in name or "published" in name]


def test_no_sentence_compares(other):
    study, runs = other
    said = [
        *sentences.short(study, runs), *sentences.budget(study), *sentences.learning_rate(study, runs),
        *sentences.baseline(runs), *sentences.ablation(runs, "kernel"), *sentences.others(runs),
        *sentences.selection(runs), *sentences.limits(study, runs),
    ]  # fmt: skip
    assert len(said) > 15
    assert not [s for s in said if "paper" in s or "original" in s or "nan" in s or "CIFAR-10 " in s]
    assert sentences.comparable(study) == [
        f"The paper and the original have published nothing about {study.base.data}, so nothing stands beside it here."
    ]
    assert claims.tally(claims.Evidence(), study) == []


def test_no_figure_draws_or_tells_them(other):
    study, runs = other
    drawn = [figures.both_ablations(runs), figures.kernel(runs), figures.patch(runs), figures.baseline(runs)]
    drawn += [figures.learning_rates(runs), figures.workflow(study, runs)]
    for figure in drawn:
        legends = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
        assert not [text for text in [*legends, figure.get_label()] if "the paper" in text or "original" in text]


def test_classes_come_from_the_record_and_many_are_few_on_the_page(other):
    study, runs = other
    names = made.classes(study.base)
    table, confusion = errors.by_class(runs), errors.confusion(runs)
    assert set(table["class"]) <= set(names) and len(table) == min(len(names), errors.SHOWN)
    assert list(table["mean"]) == sorted(table["mean"]) or len(names) <= errors.SHOWN
    ticks = [text.get_text() for text in confusion.axes[0].get_xticklabels()]
    assert 2 < len(ticks) <= errors.SHOWN and set(ticks) <= set(names)
    assert bool(errors.left_out(runs)) == (len(names) == 100)
    assert ("of 100 classes" in confusion.get_label()) == (len(names) == 100)
    assert errors.reliability(runs).axes and len(errors.calibration(runs))


@pytest.mark.parametrize("n", [1, 12, 60])
def test_a_test_part_of_few_images_has_its_figures(home, n):
    study = made.study(dataset="folder:few", settings=["kernel-9"])
    (run,) = study.runs
    values = made.record(run) | {"test_images": n}
    labels = np.arange(n, dtype=np.uint8) % 3
    logits = np.eye(3, dtype=np.float16)[(labels + (np.arange(n) % 4 == 1)) % 3]
    values["test_acc"] = records.accuracy(logits, labels)
    folder = made.write(study, run, values)
    records.write_arrays(folder / records.ARRAYS, {"logits": logits, "labels": labels, **made.inside(run.params)})
    runs = records.load(study)
    assert errors.reliability(runs).axes and errors.confusion(runs).axes
    if n > 2:
        assert len(errors.by_class(runs)) == 3
    assert f"{n:,} test images alone" in " ".join(sentences.baseline(runs))


def test_a_study_of_other_data_counts_for_no_claim(home):
    """`laptop` and `paper`, which decide most of the claims, filled with runs of CIFAR-100."""
    for name in ("laptop", "paper"):
        path = studies.PARAMS / "studies" / f"{name}.yaml"
        text = path.read_text()
        made.fill(studies.load(name))
        judged = claims.ledger(claims.Evidence())
        path.write_text(text + "\ndataset: cifar100\n")
        made.fill(studies.load(name))
        without = claims.ledger(claims.Evidence())
        decided = judged["rule"].str.contains(f"`{name}`")
        assert decided.any() and not (judged[decided]["verdict"] == claims.NOT_RUN).all()
        assert (without[decided]["verdict"] == claims.NOT_RUN).all()
    evidence = claims.Evidence()
    assert not len(front.overview(evidence))
    assert list(front.other_data()["data"]) == ["CIFAR-100", "CIFAR-100"]
    assert readme.block() == "No study is finished yet: `make report` trains one."


def test_runs_of_other_pictures_are_not_beside_each_other(home):
    study = made.study(dataset="folder:my pets", settings=["kernel-3", "kernel-9"])
    made.fill(study)
    assert set(records.load(study)["status"]) == {"done"}
    last = made.record(study.runs[1]) | {"data_digest": "of another day", "finished": "2026-02-01T00:00:00+00:00"}
    made.write(study, study.runs[1], last)
    first, second = records.load(study).itertuples()
    assert (first.status, second.status) == ("refused", "done") and first.record is None and np.isnan(first.test_acc)
    assert (
        first.reason.startswith("reports/made/runs/k3-p1-seed0: trained on other images (sha256:000")
        and "\n" not in first.reason
    )


def test_a_network_of_other_data_is_not_offered_in_the_browser_and_its_card_is_its_own(other):
    study, _ = other
    run = study.runs[0]
    values = made.record(run)
    folder = made.folder_of(study, run)
    assert build.candidates([(folder, values)]) == []
    text = cards.card(values, records.read_arrays(values))
    assert f"pictures into {study.base.data}'s {len(made.classes(study.base))} classes" in text
    assert "CIFAR-10" not in text.replace("CIFAR-100", "")
    assert f"| {made.classes(study.base)[2]} |" in text


def test_an_ablation_of_other_data_has_the_sizes_of_its_study(home):
    runs = records.load(made.study(dataset="cifar100", settings=["kernel-3", "kernel-9"]))
    assert cells.ablation(runs, "kernel") == ["kernel-3", "kernel-9"]
    assert cells.ablation(runs, "patch") == ["patch-1", "patch-2", "patch-4"]  # of what it has none of, the paper's
    assert len(tables.patch(runs)) == 3 and figures.patch(runs).axes
