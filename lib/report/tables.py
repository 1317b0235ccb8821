"""One function a table of the paper, each from the DataFrame of records.load and nothing else.

A table holds numbers under machine-readable names and is written to CSV as it is; lib.report.show makes the text that a
person reads of it. Accuracies in per cent of the test set, differences in points, NaN where there is nothing.
Every setting keeps its row: `n` of `seeds` runs are finished, and `status` says in words what the others are.
"""

import numpy as np
import pandas as pd

from lib import records
from lib.params import Params
from lib.report import cells, published, stats
from lib.report.columns import (
    COMPARED,
    KERNEL,
    ORIGINAL,
    OURS,
    PATCH,
    SETTING,
    STATUS,
    Column,
    N,
    interval,
    mega,
    number,
    p_value,
    shows,
    signed,
    theirs,
    timed,
    words,
)  # fmt: skip
from lib.study import Study

# Tables I to IV


def _cell(runs: pd.DataFrame, setting: str, kernel=np.nan, patch=np.nan) -> dict:
    """A setting with our accuracy; kernel and patch name it where this study has no run of it."""
    rows = cells.of_setting(runs, setting)
    ours = stats.mean(rows.loc[rows["status"] == "done", "test_acc"])
    if len(rows):
        kernel, patch = rows.iloc[0]["kernel"], rows.iloc[0]["patch"]
    return {
        "setting": setting, "kernel": kernel, "patch": patch, "ours": ours.mean, "half": ours.half,
        "n": ours.n, "seeds": len(rows), "status": cells.status(rows),
    }  # fmt: skip


def _compared(runs: pd.DataFrame, cell: dict, paper: published.Published | None) -> dict:
    """A cell beside the paper's figure and the original's, if they are of its configuration and of these data."""
    original = published.original(cell["kernel"], cell["patch"])
    if paper and (paper.kernel, paper.patch) != (cell["kernel"], cell["patch"]):
        paper = None  # a study may give a setting of the paper's another k or p
    if not cells.of_the_paper(runs):
        paper = original = None
    figures = {"paper": paper.accuracy if paper else np.nan, "original": original.accuracy if original else np.nan}
    return cell | figures | {f"ours_minus_{name}": cell["ours"] - value for name, value in figures.items()}


def _without_theirs(runs: pd.DataFrame, table: pd.DataFrame) -> pd.DataFrame:
    """The table, with NaN for what the paper has published where the runs are of other data."""
    if len(table) and not cells.of_the_paper(runs):
        table = table.assign(**{name: np.nan for name in table if name.startswith("paper")})
    return table


@shows(KERNEL, PATCH, *COMPARED, STATUS)
def baseline(runs: pd.DataFrame) -> pd.DataFrame:
    """Table I: the baseline k=9, p=1."""
    return pd.DataFrame([_compared(runs, _cell(runs, cells.BASELINE, 9, 1), published.BASELINE)])


@shows(KERNEL, PATCH, *COMPARED, STATUS)
def kernel(runs: pd.DataFrame) -> pd.DataFrame:
    """Table II: accuracy by kernel size at p=1."""
    return _ablation(runs, "kernel", lambda size: {"kernel": size, "patch": 1})


@shows(KERNEL, PATCH, *COMPARED, STATUS)
def patch(runs: pd.DataFrame) -> pd.DataFrame:
    """Table III: accuracy by patch size at k=9."""
    return _ablation(runs, "patch", lambda size: {"kernel": 9, "patch": size})


@shows(SETTING, KERNEL, PATCH, *COMPARED, STATUS)
def overall(runs: pd.DataFrame) -> pd.DataFrame:
    """Table IV: the five rows that the paper compares with the original.

    Three of them are one configuration, which is trained once a seed here; the paper prints three figures for it.
    """
    rows = []
    for name, figure in published.OVERALL.items():
        setting = cells.BASELINE if name == "baseline" else name
        rows.append(_compared(runs, _cell(runs, setting, figure.kernel, figure.patch), figure) | {"setting": name})
    return pd.DataFrame(rows)


def _change(row: dict) -> str:
    if pd.isna(row["change"]):
        return "–"
    return f"{signed(row['change'])}{interval(row['change_half'])} points from `{row['change_from']}`"


CHANGE = Column("change", "change", _change, optional=True)


@shows(
    SETTING, KERNEL, PATCH, OURS, N, CHANGE, number("validation", "validation (%)", optional=True),
    ORIGINAL, theirs("ours_minus_original", "ours − original", "{:+.2f}"),
    words("published", "published elsewhere (%)", optional=True), STATUS,
)  # fmt: skip
def others(runs: pd.DataFrame, all_runs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Settings that belong to no table of the paper, beside whatever was published for their k and p.

    `change` is the difference to `change_from`, the ablations' setting of the same k and p, over common seeds.
    all_runs: where that is found, if not in `runs`.
    """
    every = runs if all_runs is None else all_runs
    known = [name for what in ("kernel", "patch", "lr") for name in cells.ablation(runs, what)]
    names = dict.fromkeys(name for names in runs["settings"] for name in names if name not in known)
    table = pd.DataFrame([_compared(runs, _cell(runs, name), None) for name in names])
    if len(table):
        table["validation"] = [cells.of_setting(runs, name)["val_acc"].mean() for name in names]
        table["change_from"] = [cells.alike(every, name) for name in names]
        steps = [stats.paired(cells.by_seed(every, usual) if usual else {}, cells.by_seed(runs, name))
                 for usual, name in zip(table["change_from"], names, strict=True)]  # fmt: skip
        table["change"], table["change_half"] = [step.mean for step in steps], [step.half for step in steps]
        comparable = cells.of_the_paper(runs)
        contexts = [published.context(row.kernel, row.patch) if comparable else () for row in table.itertuples()]
        table["published"] = ["; ".join(f"{f.accuracy:.2f} ({f.source})" for f in found) for found in contexts]
    return table.drop(columns=["paper", "ours_minus_paper"], errors="ignore")


def _ablation(runs: pd.DataFrame, what: str, sizes) -> pd.DataFrame:
    rows = [_cell(runs, name, **sizes(cells.size(name))) for name in cells.ablation(runs, what)]
    return pd.DataFrame([_compared(runs, row, published.printed(row["setting"])) for row in rows])


@shows(
    words("step", "step", "short"), number("difference", "ours", "{:+.2f}", spread="half"), N,
    words("also", "also changes", optional=True),
    p_value("p", "sign-flip p-value"), p_value("smallest_p", "smallest p-value of n"),
    p_value("images_p", "McNemar p-value, these images"),
    theirs("paper_step", "the paper", "{:+.2f}"), theirs("original_step", "the original", "{:+.2f}"),
)  # fmt: skip
def steps(runs: pd.DataFrame, what: str, only: list[str] | None = None) -> pd.DataFrame:
    """From each level of an ablation to the next: ours over common seeds, the paper's step, the original's.

    `half` and `p` (sign flip) need two seeds; `images_p` is McNemar's on the test images where there is one. `also`
    names what else a study changes with the size, which the step is then of as well.
    With `only`, from one of these settings to the next of them.
    """
    table = (kernel if what == "kernel" else patch)(runs)
    table = table if only is None else table[table["setting"].isin(only)]
    rows = []
    for before, after in zip(table.iloc[:-1].itertuples(), table.iloc[1:].itertuples(), strict=True):
        step = stats.paired(cells.by_seed(runs, before.setting), cells.by_seed(runs, after.setting))
        rows.append({
            "step": f"{what[0]}={getattr(before, what):.0f}→{getattr(after, what):.0f}",
            "also": ", ".join(cells.also_changed(runs, before.setting, after.setting)),
            "difference": step.mean, "half": step.half, "n": step.n, "p": step.p, "smallest_p": step.smallest_p,
            "images_p": _images_p(runs, before.setting, after.setting) if step.n == 1 else np.nan,
            "paper_step": after.paper - before.paper, "original_step": after.original - before.original,
        })  # fmt: skip
    return pd.DataFrame(rows)


def _images_p(runs: pd.DataFrame, before: str, after: str) -> float:
    """McNemar's p of the one seed that two settings share; NaN where logits are missing or unreadable."""
    (seed,) = set(cells.by_seed(runs, before)) & set(cells.by_seed(runs, after))
    both = []
    for setting in (before, after):
        rows = cells.of_setting(runs, setting)
        both.append(rows[rows["seed"] == seed].iloc[0]["record"])
    try:
        first, second = map(records.read_arrays, both)
    except records.RecordError:
        return np.nan
    return stats.mcnemar(first["logits"].argmax(1), second["logits"].argmax(1), first["labels"])


# Learning rates, curves and the choice of the epoch


def history(runs: pd.DataFrame) -> pd.DataFrame:
    """Every epoch of every finished run, one row each: run, settings, seed, watched and the record's entries.

    `watched` is the accuracy that could be seen while training: validation, or test where a study watches that.
    """
    rows = [
        {"run": row.run, "settings": row.settings, "seed": row.seed, "watched": _watched(epoch), **epoch}
        for row in runs[runs["status"] == "done"].itertuples()
        for epoch in row.record["history"]
    ]
    names = ("run", "settings", "seed", "watched", "epoch", "loss", "train_loss", "train_acc", "val_loss", "val_acc")
    return pd.DataFrame(rows, columns=None if rows else list(names))


def _watched(epoch: dict) -> float:
    found = (epoch[name] for name in ("val_acc", "test_acc") if epoch.get(name) is not None)
    return next(found, np.nan)


@shows(
    number("lr", "learning rate", "{:g}"), words("images", "images", "short"), number("epochs", "epochs", "{}"),
    OURS, N, theirs("paper", "the paper, best on test (%)"), theirs("paper_epochs", "epochs, the paper", "{:.0f}"),
    STATUS,
)  # fmt: skip
def learning_rates(runs: pd.DataFrame) -> pd.DataFrame:
    """Fig. 2 as a table: validation accuracy at the end of the sweep, by learning rate.

    A study without a validation split that watches the test set has that instead, and `images` says so.
    """
    rows = []
    for setting in cells.ablation(runs, "lr"):
        group = cells.of_setting(runs, setting)
        last = [record["history"][-1] for record in group["record"].dropna()]
        ours = stats.mean([value for value in map(_watched, last) if not np.isnan(value)])
        rate = float(group.iloc[0]["lr"])
        rows.append({
            "setting": setting, "lr": rate, "epochs": int(group.iloc[0]["epochs"]),
            "images": "test" if any(epoch.get("val_acc") is None for epoch in last) else "validation",
            "ours": ours.mean, "half": ours.half, "n": ours.n, "seeds": len(group), "status": cells.status(group),
            "paper": published.SWEEP.get(rate, np.nan), "paper_epochs": published.SWEEP_EPOCHS,
        })  # fmt: skip
    return _without_theirs(runs, pd.DataFrame(rows))


@shows(
    SETTING, N, number("last_epoch", "last epoch (%)"), number("selected", "selected epoch (%)"),
    number("best_on_test", "best on test: a leak (%)", optional=True),
    theirs("paper_last_epoch", "the paper, last epoch (%)"), theirs("paper_best_on_test", "the paper, as printed (%)"),
    STATUS,
)  # fmt: skip
def selection(runs: pd.DataFrame) -> pd.DataFrame:
    """What the choice of the epoch is worth: last epoch, selected epoch and, where recorded, the best on the test set.

    The last is a leak: it takes the largest of many test accuracies, as the paper's notebooks do. It is recorded
    only where a study asks for it (select: best_test).
    """
    rows = []
    for setting in (name for what in ("kernel", "patch") for name in cells.ablation(runs, what)):
        group = cells.of_setting(runs, setting)
        done = group.loc[group["status"] == "done", "record"]
        leaks = [records.best_test(r) for r in done if "test_acc" in r["history"][0]]
        printed = published.printed(setting)
        rows.append({
            "setting": setting, "n": len(done), "status": cells.status(group),
            "last_epoch": stats.mean([r["last_test_acc"] for r in done]).mean,
            "selected": stats.mean([r["test_acc"] for r in done]).mean,
            "best_on_test": stats.mean(leaks).mean,
            "paper_last_epoch": published.last_epoch(setting),
            "paper_best_on_test": printed.accuracy if printed else np.nan,
        })  # fmt: skip
    return _without_theirs(runs, pd.DataFrame(rows))


# Compute, runs and where they come from


@timed
@shows(
    words("part", "part", "short"), N, words("train_batch", "train batch"), words("test_batch", "test batch"),
    number("epochs", "epochs", "{}"), number("hours", "hours"), number("minutes_per_epoch", "min/epoch"),
    theirs("paper_epochs", "epochs, the paper", "{:.0f}"), theirs("paper_hours", "hours, the paper", "{:.1f}"),
    theirs("paper_minutes_per_epoch", "min/epoch, the paper", "{:.1f}"),
)  # fmt: skip
def compute(runs: pd.DataFrame) -> pd.DataFrame:
    """Table V: the cost of each ablation and of all runs, wall-clock training and evaluation of finished runs.

    A run that two ablations show counts in both and once in the total.
    """
    rows = []
    for what, name in (("kernel", "kernel size ablation"), ("patch", "patch size ablation"), ("lr", "learning rates")):
        if len(group := cells.ablation_runs(runs, what)):
            rows.append(_cost(name, group, published.COMPUTE.get(what)))
    return _without_theirs(runs, pd.DataFrame([*rows, _cost("all runs, each once", runs, None)]))


def _cost(name: str, group: pd.DataFrame, theirs: published.Compute | None) -> dict:
    done = group[group["status"] == "done"]
    epochs, seconds = sum(map(len, (r["history"] for r in done["record"]))), done["seconds"].sum()
    return {
        "part": name, "n": len(done), "runs": len(group),
        "train_batch": _values(done, "batch_size"), "test_batch": _values(done, "test_batch_size"),
        "epochs": epochs, "hours": seconds / 3600 if epochs else np.nan,
        "minutes_per_epoch": seconds / 60 / epochs if epochs else np.nan,
        "paper_epochs": theirs.epochs if theirs else np.nan, "paper_hours": theirs.hours if theirs else np.nan,
        "paper_minutes_per_epoch": theirs.minutes_per_epoch if theirs else np.nan,
    }  # fmt: skip


def _values(done: pd.DataFrame, name: str) -> str:
    """The different values of a parameter among finished runs, as text."""
    return ", ".join(map(str, sorted({record["params"].get(name, "?") for record in done["record"]})))


@timed
@shows(
    SETTING, KERNEL, PATCH, N, number("epochs", "epochs", "{}"), number("minutes", "minutes a run", "{:.1f}"),
    number("seconds_per_epoch", "s/epoch", "{:.1f}"), number("fastest_images_per_second", "best images/s", "{:,.0f}"),
    number("parameters", "parameters", "{:,.0f}"), mega("forward_macs", "forward MMACs"), STATUS,
)  # fmt: skip
def compute_by_setting(runs: pd.DataFrame) -> pd.DataFrame:
    """The cost of one run of each setting: means over its finished seeds, and the fastest epoch of any of them.

    Times are of whatever else ran there, too; the fastest epoch is disturbed least. Where several machines trained, it
    is of one of them alone (cells.on_one_machine).
    """
    one = cells.on_one_machine(runs)
    rows = []
    for setting in dict.fromkeys(name for names in runs["settings"] for name in names):
        group = cells.of_setting(runs, setting)
        done = group[group["status"] == "done"]
        numbers = done[["parameters", "forward_macs"]].mean().to_dict()
        numbers["fastest_images_per_second"] = cells.showing(one, {setting})["fastest_images_per_second"].max()
        rows.append({
            "setting": setting, "kernel": group.iloc[0]["kernel"], "patch": group.iloc[0]["patch"], "n": len(done),
            "status": cells.status(group), "epochs": int(group.iloc[0]["epochs"]),
            "minutes": done["seconds"].mean() / 60,
            "seconds_per_epoch": (done["seconds"] / done["epoch"]).mean(), **numbers,
        })  # fmt: skip
    return pd.DataFrame(rows)


@shows(
    words("network", "network", "short"), number("default_images", "PyTorch (img/s)", "{:.1f}"),
    number("tuned_images", "PyTorch's best (img/s)", "{:.1f}"), number("native_images", "native (img/s)", "{:.1f}"),
    words("native", "number type"), number("over_default", "over PyTorch", "{:.1f} ×"),
    number("over_tuned", "over PyTorch's best", "{:.1f} ×"), number("bound_share", "of the bound", "{:.0%}"),
    number("default_mb", "PyTorch (MB)", "{:,.0f}"), number("native_mb", "native (MB)", "{:,.0f}"),
)  # fmt: skip
def speed(bench: dict | None) -> pd.DataFrame:
    """Images a second and MB in training, by network: plain PyTorch, the fastest of PyTorch tuned by hand (`tuned` says
    how) and of the native layers (`native`: in which type).

    float32_over_...: the same ratios with float32 on both sides.
    bound_share: of the images a second that the arithmetic alone would allow, at this machine's measured speed of
    products of that type.
    """
    rows = []
    for network in (bench or {"networks": []})["networks"]:
        variants = {
            "default": network["variants"].get("PyTorch, defaults"),
            "tuned": network["variants"].get(network["tuned"]),
            "native": network["variants"].get(network["ours"]),
        }
        row = {"network": network["name"], "kernel": network["kernel"], "patch": network["patch"]}
        for name, unit in (("images_per_second", "images"), ("peak_memory_mb", "mb")):
            row |= {f"{which}_{unit}": (found or {}).get(name, np.nan) for which, found in variants.items()}
        row |= {"tuned": network["tuned"], "native": (network["ours"] or "").removeprefix("ours, ")}
        ratios = ("over_default", "over_tuned", "float32_over_default", "float32_over_tuned")
        row |= {name: network[name] or np.nan for name in ratios}
        bound = "share_of_bound_bf16" if row["native"] == "bfloat16" else "share_of_bound"
        rows.append(row | {"bound_share": network[bound]})
    return pd.DataFrame(rows)


@timed
@shows(
    words("run", "run", "short"), words("settings", "settings"), number("seed", "seed", "{}"),
    words("status", "status"), number("epochs", "epochs", "{}"),
    number("selected_epoch", "selected epoch", "{:.0f}"), number("selected", "selected epoch (%)"),
    number("last_epoch", "last epoch (%)"), number("validation", "validation (%)", optional=True),
    number("seconds", "seconds", "{:.0f}"), words("reason", "reason", optional=True),
)  # fmt: skip
def every_run(runs: pd.DataFrame) -> pd.DataFrame:
    """Each run of the study, finished or not, with the reason where it is not."""
    chosen = [record["selected_epoch"] if record else np.nan for record in runs["record"]]
    return pd.DataFrame({
        "run": runs["run"], "settings": [" ".join(names) for names in runs["settings"]], "seed": runs["seed"],
        "status": runs["status"], "epoch": runs["epoch"], "epochs": runs["epochs"], "selected_epoch": chosen,
        "selected": runs["test_acc"], "last_epoch": runs["last_test_acc"], "validation": runs["val_acc"],
        "seconds": runs["seconds"], "reason": runs["reason"],
    })  # fmt: skip


@shows(words("parameter", "parameter", "short"), words("as_written", "the paper as written"), words("here", "here"))
def overrides(study: Study) -> pd.DataFrame:
    """Every parameter in which the study's runs differ from the paper as written (the defaults of Params).

    `here` is the value that the runs share and, behind it, what single settings change. What an ablation is about is
    left out: k, p and the seed, and the rate and length of the sweep's runs.
    """
    written, rows = Params().computed(), []
    for name, usual in study.base.computed().items():
        changed: dict[str, list[str]] = {}
        for run in study.runs:
            swept = name in ("lr", "epochs") and all(cells.is_of("lr", setting) for setting in run.settings)
            if (value := getattr(run.params, name)) != usual and not swept:
                changed.setdefault(str(value), []).extend(run.settings)
        if name in ("kernel", "patch", "seed") or (usual == written[name] and not changed):
            continue
        here = [str(usual), *(f"{value} for {', '.join(dict.fromkeys(names))}" for value, names in changed.items())]
        rows.append({"parameter": name, "as_written": str(written[name]), "here": "; ".join(here)})
    return pd.DataFrame(rows, columns=["parameter", "as_written", "here"])


@shows(words("fact", "fact", "short"), words("value", "value"), number("runs", "runs", "{}"))
def provenance(runs: pd.DataFrame) -> pd.DataFrame:
    """Where the finished records come from: each fact, its value, and how many runs share it."""
    done = runs.loc[runs["status"] == "done", "record"]
    facts: dict[str, dict[str, int]] = {}
    for record in done:
        seen = {name: record.get(name) for name in ("data_digest", "train_images", "val_images", "numerics")}
        for name, value in (seen | record["environment"]).items():
            counts = facts.setdefault(name, {})
            counts[_text(value)] = counts.get(_text(value), 0) + 1
    rows = [{"fact": name, "value": value, "runs": n} for name, values in facts.items() for value, n in values.items()]
    return pd.DataFrame(rows, columns=["fact", "value", "runs"])


def _text(value) -> str:
    if value is None:
        return "none"
    return ("no", "yes")[value] if isinstance(value, bool) else str(value)
