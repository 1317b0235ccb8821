"""What the front page over all studies shows beside the ledger of claims and the gap."""

import pandas as pd

from lib import study as studies
from lib.report import cells, stats
from lib.report.claims import Evidence
from lib.report.columns import Column, number, shows, timed, words


@timed
@shows(
    words("study", "study", "short"), words("purpose", "what it is"), words("network", "network", "short"),
    number("epochs", "epochs", "{}"), Column("runs", "runs", lambda row: f"{row['done']} of {row['runs']}"),
    number("baseline", "k=9, p=1 (%)", spread="baseline_half"),
    number("patch_4", "k=9, p=4 (%)", spread="patch_4_half"),
    number("hours", "hours", "{:.1f}"),
)  # fmt: skip
def overview(evidence: Evidence) -> pd.DataFrame:
    """Every study that has a finished run: what it is, how far, both ends of its patch ablation and its cost."""
    rows = []
    for name in studies.names():
        runs = evidence.runs(name)
        done = runs[runs["status"] == "done"]
        if done.empty:
            continue
        design = studies.load(name)
        p = design.base
        row = {
            "study": f"[{name}]({name}/index.html)", "purpose": design.purpose.partition(". ")[0].rstrip(".") + ".",
            "network": f"{p.dim}/{p.depth}", "epochs": p.epochs, "done": len(done), "runs": len(runs),
            "hours": done["seconds"].sum() / 3600,
        }  # fmt: skip
        for column, setting in (("baseline", cells.baseline_setting(runs)), ("patch_4", "patch-4")):
            found = stats.mean(list(evidence.accuracy(name, setting).values()))
            row |= {column: found.mean, f"{column}_half": found.half}
        rows.append(row)
    return pd.DataFrame(rows)
