"""What the front page over all studies shows beside the ledger of claims and the gap."""

import pandas as pd

from lib import records
from lib import study as studies
from lib.report import cells, stats
from lib.report.claims import Evidence
from lib.report.columns import Column, number, shows, timed, words

COLUMNS = (
    words("study", "study", "short"), words("purpose", "what it is"), words("network", "network", "short"),
    number("epochs", "epochs", "{}"), Column("runs", "runs", lambda row: f"{row['done']} of {row['runs']}"),
    number("baseline", "k=9, p=1 (%)", spread="baseline_half"),
    number("patch_4", "k=9, p=4 (%)", spread="patch_4_half"),
    number("hours", "hours", "{:.1f}"),
)  # fmt: skip


@timed
@shows(*COLUMNS)
def overview(evidence: Evidence) -> pd.DataFrame:
    """Every study that has a finished run: what it is, how far, both ends of its patch ablation and its cost."""
    return _overview({name: evidence.runs(name) for name in studies.names()}).drop(columns="data", errors="ignore")


@timed
@shows(words("data", "images", "short"), *COLUMNS)
def other_data() -> pd.DataFrame:
    """The same of studies of other images than CIFAR-10, which nothing else on the page is about."""
    found = {name: records.load(studies.load(name)) for name in studies.names()}
    return _overview({name: runs for name, runs in found.items() if not cells.of_the_paper(runs)})


def _overview(found: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """A row for each study, by name, of which a run is finished."""
    rows = []
    for name, runs in found.items():
        done = runs[runs["status"] == "done"]
        if done.empty:
            continue
        design = studies.load(name)
        p = design.base
        row = {
            "data": p.data, "study": f"[{name}]({name}/index.html)",
            "purpose": design.purpose.partition(". ")[0].rstrip(".") + ".",
            "network": f"{p.dim}/{p.depth}", "epochs": p.epochs, "done": len(done), "runs": len(runs),
            "hours": done["seconds"].sum() / 3600,
        }  # fmt: skip
        for column, setting in (("baseline", cells.baseline_setting(runs)), ("patch_4", "patch-4")):
            accuracy = stats.mean(list(cells.by_seed(runs, setting).values()))
            row |= {column: accuracy.mean, f"{column}_half": accuracy.half}
        rows.append(row)
    return pd.DataFrame(rows)
