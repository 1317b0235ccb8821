"""The gap between the paper and the original at p=4, its largest and cheapest, taken apart into steps.

Every level is k=9, p=4 of ConvMixer-256/8. From one level to the next the choice of the epoch, the recipe (many
parameters at once) or the number of epochs changes. The paper explains the gap by too few epochs.
"""

import numpy as np
import pandas as pd

from lib import study as studies
from lib.report import published, stats
from lib.report.claims import Evidence
from lib.report.columns import N, interval, number, shows, words

# What changes, what a sentence calls it, the study and the setting that have it, and which accuracy of a record it is.
LEVELS = (
    ("rerun as the authors' notebooks ran it, best epoch on the test set",
     "as the authors' notebooks ran it, best epoch on the test set", "as_run", "patch-4", "best_test"),
    ("the last epoch instead: no choice on the test set", "", "as_run", "patch-4", "last_test_acc"),
    ("the recipe as the paper writes it", "as the paper writes it", "paper", "patch-4", "test_acc"),
    ("the recipe of the authors' own learning-rate sweep", "with the recipe of its learning-rate sweep",
     "tuned", "patch-4", "test_acc"),
    ("the original's recipe", "with the original's recipe", "original", "cut-30", "test_acc"),
    (f"{published.ORIGINAL_EPOCHS} epochs instead of {published.EPOCHS}",
     f"with that for {published.ORIGINAL_EPOCHS} epochs", "original", "patch-4", "test_acc"),
)  # fmt: skip


@shows(
    words("change", "what changes"), words("study", "study", "short"),
    number("accuracy", "accuracy (%)", spread="half"), number("step", "step (points)", "{:+.2f}"), N,
    words("parameters", "parameters that change"),
)  # fmt: skip
def gap(evidence: Evidence) -> pd.DataFrame:
    """From the paper's figure to the original's: the level after each change, and what the change was worth.

    A step is the difference of two means: to the level before that has a finished run.
    """
    rows = [{"change": "the paper, as printed", "study": "", "accuracy": published.printed("patch-4").accuracy}]
    before: dict = {}
    for change, _, study, setting, measure in LEVELS:
        found = stats.mean([_accuracy(record, measure) for record in evidence.records(study, setting)])
        asked = [run.params.computed() for run in studies.load(study).runs_of(setting)]
        now = asked[0] if asked else {}
        differ = [name for name in now if before and now[name] != before[name]]
        before = now or before
        rows.append({
            "change": change, "study": study, "accuracy": found.mean, "half": found.half, "n": found.n,
            "seeds": len(asked), "parameters": ", ".join(differ),
        })  # fmt: skip
    rows.append({"change": "the original, as the paper quotes it", "accuracy": published.original(9, 4).accuracy})
    table = pd.DataFrame(rows).fillna({"n": 1, "seeds": 1, "study": "", "parameters": ""})
    table["step"] = table["accuracy"] - table["accuracy"].ffill().shift()
    return table.astype({"n": int, "seeds": int})


def _accuracy(record: dict, measure: str) -> float:
    if measure == "best_test":
        return max(epoch["test_acc"] for epoch in record["history"])
    return record[measure]


def levels(evidence: Evidence) -> list[str]:
    """What ours reach between the paper's figure and the original's, in one sentence; none without a finished run."""
    table = gap(evidence)
    rows = zip(LEVELS, table.iloc[1:-1].itertuples(), strict=True)
    reached = [f"{row.accuracy:.2f}{interval(row.half)} % (n={row.n}) {said}" for (_, said, *_), row in rows
               if said and row.n]  # fmt: skip
    if not reached:
        return []
    theirs, original = table["accuracy"].iloc[[0, -1]]
    return [
        f"At k=9, p=4 of ConvMixer-256/8 the paper has {theirs:.2f} %, the original {original:.2f} %. Ours, after "
        f"{published.EPOCHS} epochs: {'; '.join(reached)}."
    ]


def seeds_needed(evidence: Evidence) -> list[str]:
    """How many paired seeds the paper's last step would need to be seen, at the spread that `laptop` measured."""
    before, after, power = "kernel-7", "kernel-9", 0.8
    differences = evidence.accuracy("laptop", before), evidence.accuracy("laptop", after)
    seeds = sorted(set(differences[0]) & set(differences[1]))
    if len(seeds) < 3:
        return []
    spread = float(np.std([differences[1][seed] - differences[0][seed] for seed in seeds], ddof=1))
    claimed = published.printed(after).accuracy - published.printed(before).accuracy
    n = stats.seeds_for(claimed, spread, power)
    return [
        f"Paired differences of k=7 and k=9 of `laptop` vary by {spread:.2f} points between seeds (n={len(seeds)}): "
        f"to see the paper's step of {claimed:.2f} points in {power:.0%} of such studies takes {n} seeds."
    ]
