"""The runs behind one cell of a table: which they are, what became of them, and that they may be averaged at all."""

import json
import re

import numpy as np
import pandas as pd

from lib import records
from lib.params import UserError, differences
from lib.report import published

PUBLISHED = {"kernel": published.KERNELS, "patch": published.PATCHES}
BASELINE = "kernel-9"  # k=9, p=1 is in both ablations
TWIN = {BASELINE: "patch-1", "patch-1": BASELINE}


class MixedRuns(UserError):
    """Runs of one cell that differ in more than the seed: one line that names them and what differs."""


def of_setting(runs: pd.DataFrame, setting: str) -> pd.DataFrame:
    """The runs that show a setting, one a seed; MixedRuns if anything but the seed differs between them."""
    rows = showing(runs, {setting})
    for row in rows.iloc[1:].itertuples():
        first = rows.iloc[0]
        if changes := differences(_parameters(row), _parameters(first)):
            raise MixedRuns(f"{setting}: {first.run} and {row.run} differ in more than the seed ({changes})")
    if rows["seed"].duplicated().any():
        raise MixedRuns(f"{setting}: {', '.join(rows['run'])} hold one seed twice")
    return rows


def _parameters(row) -> dict:
    return {name: value for name, value in row.params.items() if name != "seed"}


def also_changed(runs: pd.DataFrame, setting: str, other: str) -> list[str]:
    """The parameters beside k and p in which two settings differ; none where one of them has no run."""
    found = [_parameters(row) for name in (setting, other) for row in showing(runs, {name}).head(1).itertuples()]
    first, second = found if len(found) == 2 else ({}, {})
    return sorted(name for name in {**first, **second} if name not in PUBLISHED and first.get(name) != second.get(name))


def alike(runs: pd.DataFrame, setting: str) -> str:
    """The ablations' setting with the k and p of another one; empty where the study has none."""
    own = showing(runs, {setting}).iloc[0]
    for what in PUBLISHED:
        for name in ablation(runs, what):
            rows = showing(runs, {name})
            if len(rows) and (rows.iloc[0]["kernel"], rows.iloc[0]["patch"]) == (own["kernel"], own["patch"]):
                return name
    return ""


def of_the_paper(runs: pd.DataFrame) -> bool:
    """Whether runs are of CIFAR-10, the data of whatever the paper and the original have published."""
    return all(params["dataset"] == "cifar10" for params in runs["params"])


def ablation(runs: pd.DataFrame, what: str) -> list[str]:
    """The settings of an ablation (kernel, patch or lr): the paper's and those that this study adds, by size.

    On other data than the paper's only those that the study has, if it has any.
    """
    names = {name for names in runs["settings"] for name in names if is_of(what, name)}
    if of_the_paper(runs) or not names:
        names |= {f"{what}-{size}" for size in PUBLISHED.get(what, ())}
    return sorted(names, key=lambda name: (size(name), name))


def is_of(what: str, setting: str) -> bool:
    """Whether a setting is one of an ablation: its name has a number, as kernel-11 and unlike kernel-noflip."""
    return setting.startswith(f"{what}-") and size(setting) < np.inf


def ablation_runs(runs: pd.DataFrame, *whats: str) -> pd.DataFrame:
    """The runs that some ablations show (kernel, patch, lr), each once."""
    return showing(runs, {name for what in whats for name in ablation(runs, what)})


def other_runs(runs: pd.DataFrame, *whats: str) -> pd.DataFrame:
    """The runs that none of these ablations shows."""
    return runs.drop(ablation_runs(runs, *whats).index)


def showing(runs: pd.DataFrame, settings: set[str]) -> pd.DataFrame:
    """The runs that show any of these settings; k=9, p=1 also where the study has it by its other name alone."""
    there = {name for names in runs["settings"] for name in names}
    settings = settings | {TWIN[name] for name in settings & TWIN.keys() if name not in there}
    return runs.loc[[bool(settings & set(names)) for names in runs["settings"]]]


def configurations(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each different configuration, finished or not, by what a figure calls it: k=9, p=1 is one of them,
    however many settings show it. The learning-rate sweep is left out: it has a figure and a length of its own.
    """
    groups: dict[str, list] = {}
    for index, row in runs[~is_sweep(runs)].iterrows():
        groups.setdefault(json.dumps(_parameters(row), sort_keys=True), []).append(index)
    found: dict[str, pd.DataFrame] = {}
    for group in groups.values():
        first = runs.loc[group[0]]
        label = _label(first)
        found[label if label not in found else first.settings[0]] = runs.loc[group]
    return found


def on_one_machine(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs of the machine that has trained most of the settings: speeds of several cannot be compared."""
    done = runs[runs["status"] == "done"]
    by_machine = done.groupby(done["record"].map(records.machine_name), sort=True)
    return max((group for _, group in by_machine), key=lambda g: (g["settings"].nunique(), len(g)), default=done)


def is_sweep(runs: pd.DataFrame) -> pd.Series:
    """Which runs are of the learning-rate sweep alone."""
    return runs["settings"].map(lambda names: all(is_of("lr", name) for name in names)).astype(bool)


def _label(row) -> str:
    """k=9, p=1 in the paper's ablations; other settings by their name, since they change something else as well."""
    name = row.settings[0]
    sizes = f"k={row.kernel:.0f}, p={row.patch:.0f}"
    return sizes if any(is_of(what, name) for what in PUBLISHED) else name


def by_seed(runs: pd.DataFrame, setting: str) -> dict[int, float]:
    """Test accuracy (%) of the finished runs of a setting, by seed."""
    rows = of_setting(runs, setting)
    done = rows[rows["status"] == "done"]
    return dict(zip(done["seed"], done["test_acc"], strict=True))


def status(rows: pd.DataFrame) -> str:
    """What became of the runs of a setting: done, or in words how many are and what the others are.

    Why a record was refused is long: every_run has it.
    """
    if rows.empty:
        return "not asked for"
    done, left = rows[rows["status"] == "done"], rows[rows["status"] != "done"]
    if left.empty:
        return "done"
    if len(rows) == 1:
        return _state(left.iloc[0])
    others = ", ".join(f"{count} {word}" for word, count in left["status"].value_counts(sort=False).items())
    return f"{len(done)} of {len(rows)} seeds ({others})"


def _state(row) -> str:
    return f"{row.status}: {row.reason}" if row.reason and row.status != "refused" else row.status


def size(setting: str) -> float:
    """The number in a setting's name, such as 9 in kernel-9 or 0.001 in lr-1e-3; infinity where there is none."""
    found = re.fullmatch(r"[a-z]+-(\d+(?:\.\d+)?(?:e-?\d+)?)", setting)
    return float(found[1]) if found else np.inf
