"""What the front page over all studies and the README show beside the ledger of claims and the gap."""

import pandas as pd

from lib import records
from lib import study as studies
from lib.report import captions, cells, claims, gap, sentences, stats, tables
from lib.report.claims import Evidence
from lib.report.columns import Column, count, number, shows, timed, words

COLUMNS = (
    words("study", "study", "short"), words("purpose", "what it is"), words("network", "network", "short"),
    words("epochs", "epochs"), Column("runs", "runs", lambda row: f"{row['done']} of {row['runs']}"),
    number("baseline", "k=9, p=1 (%)", spread="baseline_half"),
    number("patch_4", "k=9, p=4 (%)", spread="patch_4_half"),
    number("hours", "hours", "{:.1f}"),
)  # fmt: skip

MAIN = ("laptop", "quick")  # the first of them that has a finished run of every setting is shown


def main_study(evidence: Evidence) -> str | None:
    """The study whose ablations stand for all: the first of MAIN that has a finished run of each of their settings."""
    for name in MAIN:
        runs = evidence.runs(name)
        if all(table(runs)["n"].all() for table in (tables.kernel, tables.patch)):
            return name
    return None


def found(evidence: Evidence) -> list[str]:
    """The findings in a few sentences: the claims, the gap, both ablations, the short training, the hours."""
    said = [*claims.tally(evidence), *gap.levels(evidence)]
    if name := main_study(evidence):
        for what in ("kernel", "patch"):
            said += [f"{what.capitalize()} size in `{name}`: {text}"
                     for text in sentences.ablation(evidence.runs(name), what)[:1]]  # fmt: skip
    return said + short_training(evidence) + hours(evidence)


def short_training(evidence: Evidence) -> list[str]:
    """What `fast` reaches, and how long one run of it took."""
    runs = evidence.runs("fast")
    done = runs[runs["status"] == "done"]
    machines = " and ".join(captions.machines(done["record"]))
    return [
        f"In `fast`, {count(int(done['epochs'].iloc[0]), 'epoch')} in {records.span(done['seconds'].mean())} a run "
        f"on {machines}, {said}"
        for said in sentences.others(done)
    ]


def hours(evidence: Evidence) -> list[str]:
    """What all finished runs took together, and how much of it were trials that chose a recipe."""
    seconds = {name: evidence.runs(name)["seconds"].dropna() for name in studies.names()}
    runs = sum(map(len, seconds.values()))
    if not runs:
        return []
    trials = sum(each.sum() for name, each in seconds.items() if name.startswith("trials"))
    chose = f", {records.span(trials)} of it for trials that chose learning rates and recipes" if trials else ""
    whole = records.span(sum(each.sum() for each in seconds.values()))
    return [f"All studies together: {count(runs, 'finished run')} in {whole}{chose}."]


@timed
@shows(*COLUMNS)
def overview(evidence: Evidence) -> pd.DataFrame:
    """Every study that has a finished run: what it is, how far, both ends of its patch ablation and its cost."""
    return _overview({name: evidence.runs(name) for name in studies.names()}).drop(columns="data", errors="ignore")


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
            "network": f"{p.dim}/{p.depth}", "epochs": captions.either(runs.loc[~cells.is_sweep(runs), "epochs"]),
            "done": len(done), "runs": len(runs),
            "hours": done["seconds"].sum() / 3600,
        }  # fmt: skip
        for column, size in (("baseline", 1), ("patch_4", 4)):
            accuracy = stats.mean(list(cells.by_seed(runs, _setting_of(done, size)).values()))
            row |= {column: accuracy.mean, f"{column}_half": accuracy.half}
        rows.append(row)
    return pd.DataFrame(rows)


def _setting_of(done: pd.DataFrame, patch: int) -> str:
    """The setting that has k=9 and this p among finished runs: an ablation's, or another one, cut short perhaps."""
    fitting = done[(done["kernel"] == 9) & (done["patch"] == patch)]
    names = [name for names in fitting["settings"] for name in names]
    return min(names, key=lambda name: not any(cells.is_of(what, name) for what in cells.PUBLISHED), default="")
