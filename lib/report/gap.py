"""The gap between the paper and the original at p=4, its largest and cheapest, taken apart into steps.

Every level is k=9, p=4 of ConvMixer-256/8; from one level to the next one thing changes. The paper explains the gap by
too few epochs.
"""

import numpy as np
import pandas as pd

from lib.report import published, stats
from lib.report.claims import Evidence
from lib.report.columns import N, number, shows, words

EPOCHS = 30
# What changes, the study and the setting that have it, and which accuracy of a record it is.
LEVELS = (
    ("rerun as the authors' notebooks ran it, best epoch on the test set", "as_run", "patch-4", "best_test"),
    ("the last epoch instead: no choice on the test set", "as_run", "patch-4", "last_test_acc"),
    ("the recipe as the paper writes it", "paper", "patch-4", "test_acc"),
    ("the recipe of the authors' own learning-rate sweep", "tuned", "patch-4", "test_acc"),
    ("the original's recipe", "original", "cut-30", "test_acc"),
    (f"{published.ORIGINAL_EPOCHS} epochs instead of {EPOCHS}", "original", "patch-4", "test_acc"),
)


@shows(
    words("change", "what changes"), words("study", "study", "short"),
    number("accuracy", "accuracy (%)", spread="half"), number("step", "step (points)", "{:+.2f}"), N,
)  # fmt: skip
def gap(evidence: Evidence) -> pd.DataFrame:
    """From the paper's figure to the original's: the level after each change, and what the change was worth.

    A step is the difference of two means, NaN where either has no finished run.
    """
    rows = [{"change": "the paper, as printed", "study": "", "accuracy": published.printed("patch-4").accuracy}]
    for change, study, setting, measure in LEVELS:
        found = stats.mean([_accuracy(record, measure) for record in evidence.records(study, setting)])
        seeds = len(evidence.runs(study)[[setting in names for names in evidence.runs(study)["settings"]]])
        rows.append({
            "change": change, "study": study, "accuracy": found.mean, "half": found.half, "n": found.n, "seeds": seeds,
        })  # fmt: skip
    rows.append({"change": "what is left to the original", "study": "", "accuracy": published.original(9, 4).accuracy})
    table = pd.DataFrame(rows)
    table["step"] = table["accuracy"].diff()
    return table.fillna({"n": 1, "seeds": 1}).astype({"n": int, "seeds": int})


def _accuracy(record: dict, measure: str) -> float:
    if measure == "best_test":
        return max(epoch["test_acc"] for epoch in record["history"])
    return record[measure]


def levels(evidence: Evidence) -> list[str]:
    """What ours reach between the paper's figure and the original's, in one sentence; none without a finished run."""
    table = gap(evidence)
    ours = table[(table["study"] != "") & (table["n"] > 0)]
    ours = ours.drop_duplicates(["study", "accuracy"])  # the best epoch may be the last
    if ours.empty:
        return []
    reached = [f"{row.change}, {row.accuracy:.2f} % (n={row.n})" for row in ours.itertuples()]
    theirs, original = table["accuracy"].iloc[[0, -1]]
    return [
        f"At k=9, p=4 of ConvMixer-256/8 the paper has {theirs:.2f} % and the original {original:.2f} %; ours, "
        f"{EPOCHS} epochs unless said otherwise: {'; '.join(reached)}."
    ]


def seeds_needed(
    evidence: Evidence, before: str = "kernel-7", after: str = "kernel-9", power: float = 0.8
) -> list[str]:
    """How many paired seeds a step would need to be seen, at the spread that `laptop` measured."""
    differences = evidence.accuracy("laptop", before), evidence.accuracy("laptop", after)
    seeds = sorted(set(differences[0]) & set(differences[1]))
    if len(seeds) < 3:
        return []
    spread = float(np.std([differences[1][seed] - differences[0][seed] for seed in seeds], ddof=1))
    claimed = published.printed(after).accuracy - published.printed(before).accuracy
    n = stats.seeds_for(claimed, spread, power)
    return [
        f"Paired differences of k=7 and k=9 vary by {spread:.2f} points from seed to seed (n={len(seeds)}): to see the "
        f"paper's step of {claimed:.2f} points in {power:.0%} of such studies takes {n} seeds."
    ]
