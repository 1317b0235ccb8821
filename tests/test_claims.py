"""The ledger of claims and the gap: made-up studies on which each verdict is known beforehand."""

import numpy as np
import pytest

import made
from lib import study as studies
from lib.params import Params
from lib.report import claims, figures, gap, published, stats
from lib.report.claims import CONTRADICTED, NOT_RESOLVED, NOT_RUN, SUPPORTED

NAMES = [claim.claim for claim in claims.CLAIMS]


def fill(name: str, accuracy, spread: float = 0.1) -> None:
    """Finishes every run of a study of the repository with `accuracy(run)`, and a little noise by run."""
    study = studies.load(name)
    random = np.random.default_rng(0)
    for run in study.runs:
        value = round(accuracy(run) + spread * random.normal(), 2)
        record = made.record(run, leak=name == "as_run") | {"test_acc": value, "last_test_acc": value}
        record["history"][-1] |= {"val_acc": value}
        made.write(study, run, record)


def verdicts() -> dict[str, str]:
    return dict(claims.ledger(claims.Evidence())[["claim", "verdict"]].to_numpy().tolist())


def by_size(sign: float = 1.0):
    """Accuracy that rises with the kernel, most at first, and falls with the patch; sign -1 turns it around."""

    def accuracy(run):
        p = run.params
        if p.arch != "convmixer":
            return 60.0
        return 80 + sign * (10 * (1 - 0.5 ** ((p.kernel - 3) / 2)) - 4 * (p.patch - 1))

    return accuracy


def test_without_runs_no_claim_is_guessed(home):
    found = verdicts()
    assert list(found) == NAMES
    of_the_paper_alone = set(found.values()) - {NOT_RUN}
    assert of_the_paper_alone <= {SUPPORTED, CONTRADICTED}
    assert found["accuracy rises with k at every step"] == NOT_RUN
    assert found["30 epochs took about ten hours a configuration"] == CONTRADICTED


def test_clear_trends_are_supported_and_turned_around_they_are_contradicted(home):
    trends = (
        "accuracy rises with k at every step",
        "the step from k=3 to k=5 gains most",
        "smaller patches are better at every step",
        "the settings rank as in the original",
    )
    for sign, word in ((1.0, SUPPORTED), (-1.0, CONTRADICTED)):
        fill("laptop", by_size(sign))
        found = verdicts()
        assert {name: found[name] for name in trends} == dict.fromkeys(trends, word)


def test_noise_resolves_nothing(home):
    fill("laptop", lambda run: 80.0, spread=2.0)
    found = verdicts()
    for name in ("accuracy rises with k at every step", "smaller patches are better at every step",
                 "the settings rank as in the original"):  # fmt: skip
        assert found[name] == NOT_RESOLVED


def test_one_seed_of_a_paired_claim_is_not_resolved():
    assert claims.of_paired(stats.paired({0: 80.0}, {0: 90.0})) == NOT_RESOLVED
    assert claims.of_paired(stats.paired({0: 80.0}, {1: 90.0})) == NOT_RUN


def test_a_part_that_is_contradicted_outweighs_the_others():
    assert claims.of_all([SUPPORTED, NOT_RUN, CONTRADICTED]) == CONTRADICTED
    assert claims.of_all([SUPPORTED, NOT_RESOLVED]) == NOT_RESOLVED
    assert claims.of_all([SUPPORTED, SUPPORTED]) == SUPPORTED


def test_the_papers_own_numbers_are_supported_by_runs_that_repeat_them(home):
    printed = {(f.kernel, f.patch): f.accuracy for f in (*published.PATCH, *published.KERNEL)}

    def accuracy(run):
        p = run.params
        return published.SWEEP[p.lr] if p.epochs == 10 else printed[p.kernel, p.patch]

    fill("paper", accuracy, spread=0.05)
    found = verdicts()
    for name in ("ConvMixer-256/8 with k=9, p=1 reaches 88.94 %", "k=9 gains up to 3.29 points over k=3"):
        assert found[name] == SUPPORTED
    assert found["0.001 is the best learning rate"] == SUPPORTED
    fill("paper", lambda run: 70.0 + run.params.lr)
    assert verdicts()["ConvMixer-256/8 with k=9, p=1 reaches 88.94 %"] == CONTRADICTED


def test_the_noise_is_that_of_three_seeds_where_they_are_there(home):
    assert claims.Evidence().noise()[0] == pytest.approx(2**0.5 * published.SEED_NOISE[16])
    values = {0: 80.0, 1: 81.0, 2: 82.0}
    fill("paper", lambda run: values[run.params.seed], spread=0)
    assert claims.Evidence().noise() == (pytest.approx(2**0.5), "3 seeds of `paper` at p=4")


def test_the_gap_adds_up_from_the_paper_to_the_original(home):
    levels = {"as_run": 79.0, "paper": 82.0, "tuned": 85.0, "original": 88.0}
    for name, level in levels.items():
        fill(name, lambda run, level=level: level + (4 if run.params.epochs == 200 else 0), spread=0)
    evidence = claims.Evidence()
    table = gap.gap(evidence)
    first, last = published.printed("patch-4").accuracy, published.original(9, 4).accuracy
    assert table["step"].sum() == pytest.approx(last - first)
    by_change = table.set_index("change")["accuracy"]
    assert by_change["the original's recipe"] == 88.0 and by_change["200 epochs instead of 30"] == 92.0
    assert table["n"].tolist() == [1, 3, 3, 3, 3, 3, 1, 1]
    assert verdicts()["too few epochs explain most of the gap"] == CONTRADICTED  # 4 of 11.65 points
    (said,) = gap.levels(evidence)
    assert "the paper has 80.96 %, the original 92.61 %" in said
    assert "82.00 ± 0.00 % (n=3) as the paper writes it; " in said
    assert said.endswith("92.00 % (n=1) with that for 200 epochs.")
    changed = table.set_index("change")["parameters"]
    assert changed["200 epochs instead of 30"] == "epochs" and not changed.iloc[:3].any()
    assert {"lr", "mixup", "select"} <= set(changed["the recipe as the paper writes it"].split(", "))


def test_an_unfinished_level_of_the_gap_stays_empty(home):
    table = gap.gap(claims.Evidence())
    assert table["accuracy"].notna().tolist() == [True] + [False] * 6 + [True]
    assert table["step"].iloc[:-1].isna().all() and table["step"].iloc[-1] == pytest.approx(11.65)
    assert figures.gap(table) is None
    assert gap.levels(claims.Evidence()) == []


def test_power_is_said_from_three_seeds_on(home):
    assert gap.seeds_needed(claims.Evidence()) == []
    fill("laptop", by_size(), spread=0.3)
    (said,) = gap.seeds_needed(claims.Evidence())
    assert "paper's step of 0.54 points in 80% of such studies takes" in said


def test_every_claim_names_where_it_stands_and_what_decides():
    assert 14 <= len(claims.CLAIMS) <= 18 and len(set(NAMES)) == len(NAMES)
    assert all(claim.where and claim.rule for claim in claims.CLAIMS)
    assert Params().epochs == published.EPOCHS


def test_the_gap_is_drawn_from_its_table(home):
    assert figures.gap(gap.gap(claims.Evidence())) is None
    fill("as_run", lambda run: 79.0)
    drawn = figures.gap(gap.gap(claims.Evidence()))
    assert "the paper, as printed: 80.96" in drawn.get_label()
    assert sum(text.get_text() == "no finished run" for text in drawn.axes[0].texts) == 4
