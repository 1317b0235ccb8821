"""The gap between the paper and the original at one patch size, taken apart into steps.

Every level is k=9 of ConvMixer-256/8. From one level to the next the choice of the epoch, the recipe (many parameters
at once) or the number of epochs changes. The paper explains the gap by too few epochs. At p=4 it is largest and
cheapest to take apart; at p=1 there are fewer levels.
"""

import numpy as np
import pandas as pd

from lib import records
from lib.report import published, stats
from lib.report.claims import ENOUGH, Evidence
from lib.report.columns import N, interval, number, shows, signed, words

# What changes, what a sentence calls it, the study and the epochs that have it, and which accuracy of a record it is.
SHORT, LONG = published.EPOCHS, published.ORIGINAL_EPOCHS
LEVELS = (
    ("rerun as the authors' notebooks ran it, best epoch on the test set",
     "as the authors' notebooks ran it, best epoch on the test set", "as_run", SHORT, "best_test"),
    ("the last epoch instead: no choice on the test set", "", "as_run", SHORT, "last_test_acc"),
    ("the recipe as the paper writes it", "as the paper writes it", "paper", SHORT, "test_acc"),
    ("the recipe of the authors' own learning-rate sweep", "with the recipe of its learning-rate sweep",
     "tuned", SHORT, "test_acc"),
    ("the original's recipe", "with the original's recipe", "original", SHORT, "test_acc"),
    (f"{LONG} epochs instead of {SHORT}", "with the original's recipe", "original", LONG, "test_acc"),
)  # fmt: skip


@shows(
    words("change", "what changes"), words("study", "study", "short"),
    number("accuracy", "accuracy (%)", spread="half"), number("step", "step (points)", "{:+.2f}", spread="step_half"),
    N, words("parameters", "parameters that change"),
)  # fmt: skip
def gap(evidence: Evidence, patch: int = 4) -> pd.DataFrame:
    """From the paper's figure to the original's: the level after each change, and what the change was worth.

    A step is the difference of two means, to the level before that has a finished run; its interval is paired over the
    seeds, where both have the same ones. A level that no study asks for at this patch size is left out.
    """
    theirs, original = published.printed(f"patch-{patch}"), published.original(9, patch)
    rows = [{"change": "the paper, as printed", "study": "", "accuracy": theirs.accuracy}]
    seen, parameters = {}, {}  # of the level that the next step is measured from: accuracy by seed, parameters
    for change, _, study, epochs, measure in LEVELS:
        runs = evidence.runs(study)
        asked = runs[(runs["arch"] == "convmixer") & (runs["kernel"] == 9) & (runs["patch"] == patch)
                     & (runs["epochs"] == epochs)]  # fmt: skip
        if asked.empty:
            continue
        first = asked.iloc[0]
        by_seed = {record["params"]["seed"]: _accuracy(record, measure)
                   for record in evidence.records(study, first.settings[0])}  # fmt: skip
        found, now = stats.mean(list(by_seed.values())), first.params
        step = stats.paired(seen, by_seed).half if seen.keys() == by_seed.keys() else np.nan
        rows.append({
            "change": change, "study": study, "epochs": epochs, "accuracy": found.mean, "half": found.half,
            "step_half": step if seen else found.half, "n": found.n, "seeds": len(asked),
            "parameters": ", ".join(name for name in now if parameters and now[name] != parameters[name]),
        })  # fmt: skip
        if by_seed or not parameters:
            seen, parameters = by_seed, now
    left = stats.mean(list(seen.values())).half
    rows.append({"change": "the original, as the paper quotes it", "accuracy": original.accuracy, "step_half": left})
    table = pd.DataFrame(rows).fillna({"n": 1, "seeds": 1, "study": "", "parameters": ""})
    table["step"] = table["accuracy"] - table["accuracy"].ffill().shift()
    return table.astype({"n": int, "seeds": int})


def _accuracy(record: dict, measure: str) -> float:
    return records.best_test(record) if measure == "best_test" else record[measure]


def levels(evidence: Evidence, patch: int = 4) -> list[str]:
    """What ours reach between the paper's figure and the original's, in one sentence; none without a finished run."""
    table = gap(evidence, patch)
    called = {change: said for change, said, *_ in LEVELS}
    rows = [row for row in table.iloc[1:-1].itertuples() if called[row.change] and row.n]
    if not rows:
        return []
    reached = []
    for epochs in (SHORT, LONG):
        found = [f"{row.accuracy:.2f}{interval(row.half)} % (n={row.n}) {called[row.change]}" for row in rows
                 if row.epochs == epochs]  # fmt: skip
        reached += [f"after {epochs} epochs: {'; '.join(found)}"] if found else []
    theirs, original = table["accuracy"].iloc[[0, -1]]
    return [
        f"At k=9, p={patch} of ConvMixer-256/8 the paper has {theirs:.2f} %, the original {original:.2f} %. Ours, "
        f"{'; '.join(reached)}."
    ]


def rerun(evidence: Evidence, patch: int = 4) -> list[str]:
    """Whether what the authors' notebooks ran learns here as it did there, at the epochs that they print.

    What seeds alone do is measured at these epochs: with a constant learning rate a single epoch says less than the end
    of a cosine does. Their one run is held against the mean of ours.
    """
    done, noise = evidence.records("as_run", f"patch-{patch}"), str(evidence.noise())
    epochs, theirs = published.curve(f"patch-{patch}")
    if not done:
        return []
    seeds = [[record["history"][epoch - 1]["test_acc"] for record in done] for epoch in epochs]
    half, free = stats.apart_by_chance(seeds)
    if free >= ENOUGH:
        half *= ((1 + 1 / len(done)) / 2) ** 0.5
        noise = f"by their spread at these epochs, seeds alone bring one run up to {half:.2f} from the mean of ours"
    ours = [float(np.mean(each)) for each in seeds]
    apart = max((mine - other for mine, other in zip(ours, theirs, strict=True)), key=abs)
    beside = "; ".join(
        f"{mine:.2f} beside {other:.2f} % after {epoch}"
        for epoch, mine, other in zip(epochs, ours, theirs, strict=True)
    )
    return [
        f"The rerun of the authors' notebooks (n={len(done)}) and their own outputs, test accuracy by epoch: {beside}, "
        f"{signed(apart)} points where they differ most; {noise}."
    ]


def seeds_needed(evidence: Evidence) -> list[str]:
    """How many paired seeds the paper's last step would need to be seen, at the spread that `laptop` measured."""
    before, after, power = "kernel-7", "kernel-9", 0.8
    differences = evidence.accuracy("laptop", before), evidence.accuracy("laptop", after)
    seeds = sorted(set(differences[0]) & set(differences[1]))
    if len(seeds) < 3:
        return ["How many seeds its last step would need is said from three seeds of `laptop` on."] if seeds else []
    spread = float(np.std([differences[1][seed] - differences[0][seed] for seed in seeds], ddof=1))
    if spread < stats.SAME:
        return ["How many seeds its last step would need cannot be said: all differ by the same in `laptop`."]
    claimed = published.printed(after).accuracy - published.printed(before).accuracy
    n, low, high = (stats.seeds_for(claimed, s, power) for s in (spread, *stats.deviation_limits(spread, len(seeds))))
    return [
        f"Paired differences of k=7 and k=9 of `laptop` vary by {spread:.2f} points between seeds (n={len(seeds)}): to "
        f"see the paper's step of {claimed:.2f} points, by a two-sided paired t-test at 5 %, in {power * 100:.0f} % of "
        f"such studies takes {n} seeds. So few seeds leave the spread itself uncertain: {low} to {high:,}."
    ]
