"""Tables and sentences against records whose numbers are known."""

import json
import re

import numpy as np
import pandas as pd
import pytest

import made
from lib import records
from lib.report import cells, columns, figures, front, published, sentences, show, stats, tables
from lib.report.claims import Evidence

EVERY = (
    tables.baseline, tables.kernel, tables.patch, tables.overall, tables.others, tables.learning_rates,
    tables.selection, tables.compute, tables.compute_by_setting, tables.every_run, tables.provenance, tables.history,
)  # fmt: skip


def test_means_intervals_and_differences(home):
    study = made.study(seeds=range(5))
    runs = made.runs(study)
    row = tables.kernel(runs).set_index("setting").loc["kernel-3"]
    accuracies = [made.record(run)["test_acc"] for run in study.runs_of("kernel-3")]
    assert row["ours"] == pytest.approx(np.mean(accuracies)) and row["n"] == 5 and row["status"] == "done"
    assert row["ours_minus_paper"] == pytest.approx(row["ours"] - 85.65)
    assert row["ours_minus_original"] == pytest.approx(row["ours"] - 93.61)
    assert 0 < row["half"] < 1


def test_one_configuration_stands_in_every_table_that_shows_it(home):
    runs = made.runs(made.study())
    kernel, patch = tables.kernel(runs).set_index("setting"), tables.patch(runs).set_index("setting")
    overall = tables.overall(runs).set_index("setting")["ours"]
    shared = {kernel.loc["kernel-9", "ours"], patch.loc["patch-1", "ours"], tables.baseline(runs)["ours"][0]}
    assert shared == set(overall[["kernel-9", "patch-1", "baseline"]]) and len(shared) == 1
    total = tables.compute(runs).set_index("part")
    assert total.loc["kernel size ablation", "n"] == 4 and total.loc["all runs, each once", "n"] == 9


def test_a_run_that_is_not_finished_keeps_its_row(home):
    study = made.study()
    made.fill(study, skip={run.name for run in study.runs[:4]})
    made.stop(study, study.runs[0], "failure", reason="out of memory", epoch=2)
    made.stop(study, study.runs[1], "progress", history=[{}, {}])
    other = made.record(study.runs[2])
    made.write(study, study.runs[2], other | {"fingerprint": "0" * 16})
    table = tables.kernel(records.load(study))
    assert list(table["status"]) == ["failed: out of memory", "unfinished: at epoch 2 of 12", "refused", "missing"]
    assert table["ours"].isna().all() and (table["n"] == 0).all() and table["paper"].notna().all()
    assert show.html_table(table, tables.kernel.columns).count('class="unfinished"') == 4


def test_fewer_seeds_than_asked_are_said(home):
    study = made.study(seeds=range(5))
    runs = made.runs(study, skip={run.name for run in study.runs_of("kernel-5")[2:]})
    row = tables.kernel(runs).iloc[1].to_dict()
    assert row["status"] == "2 of 5 seeds (3 missing)" and row["n"] == 2
    assert columns.N.text(row) == "2 of 5" and "±" in columns.OURS.text(row)


def test_one_seed_has_no_interval(home):
    row = tables.kernel(made.runs(made.study())).iloc[0].to_dict()
    assert np.isnan(row["half"]) and columns.OURS.text(row) == f"{row['ours']:.2f}"


@pytest.mark.parametrize("change", [{"epochs": 3}, {"lr": 0.5}])
def test_runs_that_differ_in_more_than_the_seed_are_never_averaged(home, change):
    runs = made.runs(made.study(seeds=range(2)))
    at = runs.index[[("kernel-5" in names) for names in runs["settings"]]][1]
    runs.at[at, "params"] = runs.at[at, "params"] | change
    with pytest.raises(cells.MixedRuns, match=rf"kernel-5: k5-p1-seed0 and k5-p1-seed1 .*{next(iter(change))}: "):
        tables.kernel(runs)


def test_one_seed_is_never_counted_twice(home):
    runs = made.runs(made.study())
    with pytest.raises(cells.MixedRuns, match="one seed twice"):
        cells.of_setting(pd.concat([runs.iloc[[1]]] * 2), runs.at[1, "settings"][0])


def test_a_new_setting_is_a_row_without_published_figures(home):
    (home / "params/settings/kernel-11.yaml").write_text("# One more.\nkernel: 11\npatch: 1\n")
    (home / "params/settings/narrow.yaml").write_text("# Both at once.\nkernel: 5\npatch: 2\n")
    runs = made.runs(made.study(settings=["kernel-9", "kernel-11", "narrow"]))
    table = tables.kernel(runs)
    assert list(table["setting"]) == [*(f"kernel-{k}" for k in published.KERNELS), "kernel-11"]
    assert list(table["status"]) == ["not asked for"] * 3 + ["done"] * 2
    assert np.isnan(table.iloc[-1]["paper"]) and table.iloc[-1]["ours"] > 0
    said = sentences.others(runs)[0]
    assert said.startswith("`narrow` (k=5, p=2, 12 epochs) reaches ") and "92.60 (locuslab" in said
    (other,) = tables.others(runs).to_dict("records")
    assert other["setting"] == "narrow" and "92.60 (locuslab" in other["published"]


def test_the_headline_figure_stands_beside_a_setting_of_the_papers_network_that_the_paper_does_not_have(home):
    (home / "params/settings/narrow.yaml").write_text("# Both at once.\nkernel: 5\npatch: 2\n")
    (home / "params/settings/printed.yaml").write_text("# The paper has its own figure.\nkernel: 9\npatch: 4\n")
    whole = {"settings": ["narrow", "printed"], "dim": 256, "depth": 8}
    runs = made.runs(made.study("fast", seeds=range(3), epochs=10, **whole))
    ours = cells.of_setting(runs, "narrow")["test_acc"].mean()
    side = "above" if ours > 88.94 else "below"
    narrow, printed = sentences.others(runs)
    assert f"{abs(ours - 88.94):.2f} points {side} the paper's headline figure (88.94 %" in narrow
    assert "headline" not in printed
    said = front.short_training(Evidence())
    assert said[0].startswith("In `fast`, 10 epochs in ") and said[0].endswith(narrow)
    small, other_data = made.study(settings=["narrow"]), made.study("cifar100", dataset="cifar100", **whole)
    for study in (small, other_data):
        assert not any("headline" in said for said in sentences.others(made.runs(study)))


def test_nothing_is_said_of_a_short_training_that_is_not_there(home):
    assert front.short_training(Evidence()) == []


def test_a_setting_with_another_patch_is_not_compared_with_the_papers(home):
    table = tables.kernel(made.runs(made.study(settings=["kernel-3", {"kernel-9": {"patch": 4}}]))).set_index("setting")
    assert table.loc["kernel-3", "paper"] == 85.65
    assert np.isnan(table.loc["kernel-9", "paper"]) and table.loc["kernel-9", "original"] == 92.61


def test_steps_are_paired_for_seeds_and_mcnemars_for_one(home):
    runs = made.runs(made.study(seeds=range(6)))
    steps = tables.steps(runs, "kernel")
    assert list(steps["step"]) == ["k=3→5", "k=5→7", "k=7→9"] and (steps["n"] == 6).all()
    assert list(steps["paper_step"]) == pytest.approx([1.33, 1.42, 0.54]) and steps["images_p"].isna().all()
    assert (steps["smallest_p"] == 2 / 2**6).all() and (steps["p"] >= steps["smallest_p"]).all()
    single = tables.steps(runs[runs["seed"] == 0], "patch")
    assert single["p"].isna().all() and (single["images_p"] < 0.001).all()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 torn", "those of another training", None])
def test_broken_arrays_leave_a_gap(home, content):
    study = made.study()
    runs = made.runs(study)
    path, other = (made.folder_of(study, study.runs_of(f"patch-{p}")[0]) / records.ARRAYS for p in (2, 4))
    assert tables.steps(runs, "patch")["images_p"].notna().all()
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else other.read_bytes())
    assert tables.steps(runs, "patch")["images_p"].isna().all()


def test_the_leak_shows_only_where_it_was_recorded(home):
    clean = tables.selection(made.runs(made.study("clean")))
    leaky = tables.selection(made.runs(made.study("leaky", select="best_test"), leak=True))
    assert clean["best_on_test"].isna().all() and clean["last_epoch"].notna().all()
    assert (leaky["best_on_test"] >= leaky["selected"] - 1e-9).all()


def test_no_validation_split(home):
    study = made.study(val_size=0, select="last")
    for run in study.runs:
        record = made.record(run)
        history = [epoch | {"val_loss": None, "val_acc": None} for epoch in record["history"]]
        made.write(study, run, record | {"history": history})
    runs = records.load(study)
    assert tables.learning_rates(runs)["ours"].isna().all() and sentences.learning_rate(study, runs) == []
    assert sentences.baseline(runs) and tables.kernel(runs)["ours"].notna().all()


def test_a_sweep_that_watches_the_test_set_says_so(home):
    study = made.study(val_size=0, select="best_test")
    for run in study.runs:
        record = made.record(run, leak=True)
        history = [epoch | {"val_loss": None, "val_acc": None} for epoch in record["history"]]
        made.write(study, run, record | {"history": history})
    runs = records.load(study)
    assert (tables.learning_rates(runs)["images"] == "test").all()
    assert "% on the test images" in sentences.learning_rate(study, runs)[0]
    assert "test images" in figures.learning_rates(runs).legends[0].get_texts()[0].get_text()
    assert "a leak" in " ".join(text.get_text() for text in figures.baseline(runs).legends[0].get_texts())


def test_no_runs_name_the_command(home):
    study = made.study(seeds=range(2))
    runs = records.load(study)
    for make in EVERY:
        assert isinstance(make(runs), pd.DataFrame)
    assert "`make runs STUDY=made`" in sentences.progress(study, runs)[0] and len(sentences.short(study, runs)) == 1


def test_csv_gives_the_numbers_back(home):
    table = tables.kernel(made.runs(made.study(seeds=range(3))))
    text = show.to_csv(table)
    lines = text.splitlines()
    assert lines[0].startswith("setting,kernel,patch,ours,half,n,seeds,status,paper,original")
    assert float(lines[1].split(",")[3]) == pytest.approx(table["ours"][0], abs=1e-8) and "\r" not in text


def test_latex_has_the_words_of_links_and_no_sign_that_it_does_not_know(home):
    frame = pd.DataFrame([{"study": "[as_run](as_run/index.html)", "found": "`paper`: k=3→5, 7 × as “fast”",
                           "ours": -1.5, "half": 0.25}])  # fmt: skip
    made_of = (columns.words("study", "study"), columns.words("found", "found"), columns.OURS)
    text = show.to_latex(frame, made_of)
    assert r"as\_run & \texttt{paper}: k=3$\to$5, 7 $\times$ as ``fast'' & $-$1.50 $\pm$ 0.25 \\" in text
    assert text.startswith("\\begin{tabular}{llr}\n\\toprule\nstudy & found & ours (\\%)")
    assert "{p{4cm}lr}" in show.to_latex(
        frame.assign(study="a text of many words, which one line has no room for"), made_of
    )
    runs = made.runs(made.study(seeds=range(2)))
    for make, *what in ((tables.kernel,), (tables.steps, "kernel"), (tables.compute,)):
        assert show.to_latex(make(runs, *what), make.columns).isascii()


def test_text_is_escaped(home):
    frame = pd.DataFrame([{"fact": "cpu", "value": '<script>"&', "runs": 1}])
    assert "<td>&lt;script&gt;&quot;&amp;</td>" in show.html_table(frame, tables.provenance.columns)
    assert show._prose("`a<b` & c") == "<code>a&lt;b</code> &amp; c"
    assert show._prose("61.10 % of all, 100 percent") == "61.10\u00a0% of all, 100 percent"


def test_sentences_follow_the_numbers(home):
    as_predicted = made.runs(made.study("up", seeds=range(5)))
    reversed_ = made.runs(made.study("down", seeds=range(5)), order=-1)
    single = made.runs(made.study("single"))
    for what in ("kernel", "patch"):
        up, down = (sentences.ablation(runs, what)[0] for runs in (as_predicted, reversed_))
        assert " as predicted" in up and "against it" not in up
        assert "against it" in down and " as predicted" not in down
        assert sentences.ablation(single, what)[0].endswith("with one seed no step is resolved.")
        assert any("n=1" in sentence for sentence in sentences.ablation(single, what))
        assert any("seed noise is not ruled out" in sentence for sentence in sentences.ablation(single, what))
        assert any("Page's trend test over 5 seeds" in sentence for sentence in sentences.ablation(as_predicted, what))


def test_sentences_name_a_gap(home):
    study = made.study()
    runs = made.runs(study, skip={study.runs_of("kernel-5")[0].name})
    assert "(n=1, other steps have no runs to compare)" in sentences.ablation(runs, "kernel")[0]
    assert "8 of 9 runs" in sentences.progress(study, runs)[0]


def test_numbers_in_sentences_are_those_of_the_tables(home):
    study = made.study(seeds=range(3))
    runs = made.runs(study)
    row = tables.baseline(runs).iloc[0]
    assert f"{row['ours']:.2f} ± {row['half']:.2f} % (n=3)" in sentences.baseline(runs)[0]
    best = sentences.learning_rate(study, runs)[0]
    assert best.startswith("Of 3 learning rates, 0.001 ends highest, as in the paper")
    parameters = set(tables.overrides(study)["parameter"])
    assert parameters == {"dim", "depth", "epochs"}
    changed = tables.overrides(made.study("changed", settings=["kernel-3", {"patch-4": {"epochs": 7}}]))
    assert changed.set_index("parameter").loc["epochs", "here"] == "12; 7 for patch-4"


def test_what_may_be_compared_depends_on_the_budget(home):
    small = " ".join(sentences.comparable(made.study()))
    assert "ConvMixer-64/4 instead of ConvMixer-256/8" in small and "12 epochs instead of 30" in small
    written = " ".join(sentences.comparable(made.study("written", dim=256, depth=8, epochs=30)))
    assert written.startswith("Every parameter is as the paper writes it, or as the README assumes where it is silent.")
    assert "not the experiment of the paper" not in written and "30 epochs instead of 200, another recipe" in written
    other = " ".join(sentences.comparable(made.study("other", dim=256, depth=8, epochs=30, lr=0.01)))
    assert "not the experiment of the paper: another recipe." in other


def test_a_corrupt_record_is_named_and_the_rest_still_shows(home):
    study = made.study()
    made.fill(study)
    path = made.folder_of(study, study.runs[0]) / records.RESULT
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"test_acc": float("nan")}))
    table = tables.every_run(records.load(study))
    assert table["status"][0] == "refused" and re.search(r"k3-p1-seed0/result.json", table["reason"][0])
    assert (table["status"][1:] == "done").all()


def test_speed_compares_the_fastest_of_each_and_leaves_out_what_did_not_run():
    table = tables.speed(made.bench(default=3, channels_last=9, ours=36))
    assert table.loc[0, ["default_images", "tuned_images", "native_images", "native_mb"]].tolist() == [3, 9, 36, 100]
    assert (table["tuned"][0], table["native"][0]) == ("channels_last", "bfloat16")
    assert np.isnan(table["float32_over_default"][0])  # ours in float32 is not in this bench
    bench = made.bench(default=3, channels_last=9, ours=36)
    bench["networks"][0] |= {"ours": None, "over_default": None, "share_of_bound_bf16": None, "share_of_bound": None}
    assert np.isnan(tables.speed(bench).loc[0, "native_images"])
    assert tables.speed(None).empty


def test_speed_in_words_names_the_machine_and_says_what_measures_it():
    assert sentences.speed(None) == ["`make bench` measures that on this machine."]
    (said,) = sentences.speed(made.bench(default=3, channels_last=9, ours=36))
    assert said.startswith("On a processor (AVX2, 2 threads) whole training steps of 1 network ran 12.0 times as fast")
    bench = made.bench(default=3, channels_last=9, ours=36)
    bench["networks"][0] |= {"float32_over_default": 6.0, "float32_over_tuned": 2.0}
    assert sentences.speed(bench)[1] == "Some of that is bfloat16; with float32 on both sides it is 6.0 and 2.0."


@pytest.mark.parametrize("settings", [["patch-4"], ["patch-2", "patch-4"]])
def test_without_a_baseline_what_there_is_is_said(home, settings):
    study = made.study(settings=settings)
    made.fill(study)
    runs = records.load(study)
    rows = tables.patch(runs).to_dict("records")[-len(settings) :]
    said = sentences.short(study, runs)[1:]
    for row, text in zip(rows, said, strict=False):
        assert text.startswith(f"k=9, p={row['patch']:.0f} reaches {row['ours']:.2f} % (n=1): ")
        assert "the paper" in text and "the original" in text
    few = "Fewer than two patch sizes have a finished run, so there is nothing to compare yet."
    assert (sentences.ablation(runs, "patch") == [few]) == (len(settings) == 1)
    assert any(text.startswith("Patch size: p=2→4") for text in said) == (len(settings) == 2)
    assert not any("Fewer" in text for text in said)


def test_a_step_that_changes_more_than_the_size_says_so(home):
    plain = made.runs(made.study(settings=["kernel-9", "patch-4"]))
    assert set(tables.steps(plain, "patch")["also"]) == {""} and "also" not in sentences.ablation(plain, "patch")[0]
    mixed = made.runs(made.study("mixed", settings=["kernel-9", {"patch-4": {"epochs": 6, "lr": 0.1}}]))
    assert tables.steps(mixed, "patch", ["patch-1", "patch-4"])["also"].tolist() == ["epochs, lr"]
    other = made.runs(made.study("other", settings=["kernel-9", {"patch-4": {"arch": "vit"}}]))
    assert "arch" in tables.steps(other, "patch", ["patch-1", "patch-4"])["also"].iloc[0]
    assert "p=1→4 also changes epochs, lr, so it is not of the patch alone." in sentences.ablation(mixed, "patch")[0]


def test_a_csv_has_no_markup():
    frame = pd.DataFrame({"study": ["[fast](fast/index.html)"], "found": ["In `quick`: 1.5"], "n": [3]})
    assert show.to_csv(frame) == "study,found,n\nfast,In quick: 1.5,3\n"


def test_another_setting_is_compared_with_the_one_of_its_size(home):
    (home / "params/settings/narrow.yaml").write_text("# Half the width.\nkernel: 9\npatch: 4\ndim: 32\n")
    (home / "params/settings/odd.yaml").write_text("# A size of its own.\nkernel: 5\npatch: 2\n")
    runs = made.runs(made.study(settings=["patch-4", "narrow", "odd", "cnn"], seeds=range(3)))
    alone = cells.other_runs(runs, "kernel", "patch")
    narrow, odd, _ = tables.others(alone, runs).to_dict("records")
    apart = stats.paired(cells.by_seed(runs, "patch-4"), cells.by_seed(runs, "narrow"))
    assert (narrow["change_from"], narrow["change"], narrow["change_half"]) == ("patch-4", apart.mean, apart.half)
    assert odd["change_from"] == "" and np.isnan(odd["change"])
    assert tables.CHANGE.text(narrow).endswith(" points from `patch-4`") and tables.CHANGE.text(odd) == "–"
    first, second, third = sentences.others(runs)
    assert third.startswith("`cnn` reaches ")
    assert "`narrow` (k=9, p=4, 12 epochs) reaches" in first and " points from `patch-4`" in first
    assert "from `" not in second


def test_a_setting_is_of_an_ablation_by_the_number_in_its_name(home):
    settings = home / "params" / "settings"
    (settings / "kernel-noflip.yaml").write_text("# k=9, p=4 without flips.\nkernel: 9\npatch: 4\nflip: false\n")
    (settings / "kernel-11.yaml").write_text("# One size more.\nkernel: 11\npatch: 1\n")
    runs = made.runs(made.study(settings=["kernel-3", "kernel-11", "kernel-noflip"]))
    assert "kernel-11" in set(tables.kernel(runs)["setting"]) and "kernel-noflip" not in set(
        tables.kernel(runs)["setting"]
    )
    assert list(tables.others(runs)["setting"]) == ["kernel-noflip"]
    assert list(cells.configurations(runs)) == ["k=3, p=1", "k=11, p=1", "kernel-noflip"]


@pytest.mark.parametrize("name", ["kernel-9", "patch-1"])
def test_the_configuration_of_both_ablations_is_found_by_either_name(home, name):
    runs = made.runs(made.study(settings=[name, "patch-4"]))
    accuracy = runs.loc[runs["patch"] == 1, "test_acc"].iloc[0]
    for table in (tables.kernel(runs), tables.patch(runs)):
        row = table[(table["kernel"] == 9) & (table["patch"] == 1)].iloc[0]
        assert (row["ours"], row["n"]) == (accuracy, 1)
    assert sentences.ablation(runs, "patch")[0].startswith("p=1→4")


def test_of_variants_the_best_in_validation_is_named_and_one_alone_is_none(home):
    several = made.runs(made.study(settings=[{"patch-4": {"lr": 0.1}}, {"patch-4": {"lr": 0.2}}]))
    (said,) = sentences.others(several)
    assert said.startswith("`patch-4`: of 2 variants lr=0.") and "is best in validation" in said
    one = made.runs(made.study("one", settings=["patch-4", {"patch-4": {"lr": 0.1}}]))
    assert sentences.others(one) == []
    held = made.study("held", settings=[{"patch-4": {"lr": 0.1}}, {"patch-4": {"lr": 0.2}}], val_size=0, select="last")
    assert not any("nan" in said for said in sentences.others(made.runs(held)))


def test_each_accuracy_stands_in_its_column(home):
    study = made.study(settings=["kernel-9", "cnn"], epochs=4)
    for run in study.runs:
        record = made.record(run, leak=True)
        for epoch, (val, test) in zip(record["history"], ((50, 41), (70, 66), (60, 68), (55, 44)), strict=False):
            epoch |= {"val_acc": val, "test_acc": test}
        made.write(
            study, run, record | {"selected_epoch": 2, "test_acc": 66.0, "last_test_acc": 44.0, "seconds": 120.0}
        )
    runs = records.load(study)
    row = tables.selection(runs).set_index("setting").loc["kernel-9"]
    assert (row["last_epoch"], row["selected"], row["best_on_test"]) == (44, 66, 68)
    each = tables.every_run(runs).iloc[0]
    assert (each["selected"], each["last_epoch"], each["validation"], each["selected_epoch"]) == (66, 44, 70, 2)
    other = tables.others(runs).iloc[0]
    assert (other["setting"], other["ours"], other["validation"]) == ("cnn", 66, 70)
