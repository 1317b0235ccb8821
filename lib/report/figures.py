"""One function a figure of the paper, each drawn from the records' DataFrame; no state, no files.

A function returns a matplotlib Figure whose label (`get_label`) is its alternative text, computed from the same data,
or None where there is nothing to draw yet.
"""

from typing import Any

import matplotlib
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from lib import records
from lib import study as studies
from lib.params import Params
from lib.report import cells, published, stats, tables
from lib.report.columns import count, interval, signed
from lib.report.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    ORIGINAL,
    OURS,
    PAPER,
    PURPLE,
    WIDTH,
    described,
    say_floor,
    styled,
)
from lib.study import Study


@styled
def workflow(study: Study, runs: pd.DataFrame) -> Figure:
    """Fig. 1: the way from parameters and images to the page, with this study's own files and counts."""
    root, folder = studies.ROOT, records.study_folder(study.name)
    settings = list(dict.fromkeys(name for run in study.runs for name in run.settings))
    done = int((runs["status"] == "done").sum())
    digests = sorted({record["data_digest"] for record in runs["record"].dropna()})
    base = study.base
    first = next(iter(runs["record"].dropna()), {})
    training, test = base.train_images or first.get("train_images"), records.test_images(first)
    counts = (
        f"{training:,} training, {base.val_size:,} validation, {test:,} test images" if training else "not read yet"
    )
    params, shown = studies.PARAMS.relative_to(root), folder.relative_to(records.REPORTS.parent)
    files = list(dict.fromkeys(name.partition(" ")[0] for name in settings))  # one may be there in several variants
    named = ", ".join([*files[:3], *(["…"] if len(files) > 3 else [])])
    asked = f"{count(len(settings), 'setting')}, by seed: {count(len(study.runs), 'different run')}"
    stages = [
        (base.data[:12], [counts, *(f"digest {digest[:24]}" for digest in digests)]),
        ("Parameters", [f"{params}/studies/{study.name}.yaml", f"{params}/settings/: {named}"]),
        ("Runs", ["papermill, notebooks/train.ipynb, lib/", asked]),
        ("Records", [f"{shown}/runs/<run>/{records.RESULT}", f"{done} of {len(runs)} runs are finished"]),
        ("Summary", ["notebooks/summary.ipynb", "lib/report/: tables, statistics, figures, sentences"]),
        ("Report", [f"{shown}/index.html", "figures/ (PNG, SVG) and tables/ (CSV, TEX) beside it"]),
    ]  # fmt: skip
    figure = Figure((WIDTH, 0.86 * len(stages)))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 10), ylim=(-len(stages), 0))
    axes.axis("off")
    for i, (name, lines) in enumerate(stages):
        box: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.12", "linewidth": 1.2}
        axes.add_patch(matplotlib.patches.FancyBboxPatch((0.15, -i - 0.8), 9.7, 0.68, fc="#f3f7fa", ec=BLUE, **box))
        axes.text(0.4, -i - 0.46, name, weight="bold", color=BLUE, va="center")
        axes.text(2.55, -i - 0.46, "\n".join(lines), va="center", fontsize=8.5, linespacing=1.45)
        if i:
            arrow = {"arrowstyle": "-|>", "color": BLUE, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
            axes.annotate("", (1.2, -i - 0.12), (1.2, -i + 0.2), arrowprops=arrow)
    return described(figure, "Flow in one direction: " + ", then ".join(f"{n} ({'; '.join(t)})" for n, t in stages))


@styled
def learning_rates(runs: pd.DataFrame) -> Figure | None:
    """Fig. 2: validation accuracy (or what the study watches instead) by epoch, a line for each learning rate."""
    curves, table = tables.history(runs), tables.learning_rates(runs)
    curves = curves.dropna(subset=["watched"])
    figure, (axes,) = _new(3.4)
    told = []
    looks = [(BLUE, "o"), (ORANGE, "s"), (GREEN, "D"), (PURPLE, "^"), (GREY, "v")]
    for row, (color, marker) in zip(table.itertuples(), looks * len(table), strict=False):
        mine = curves[[row.setting in names for names in curves["settings"]]]
        if mine.empty:
            continue
        _curve(axes, mine, "watched", f"{row.lr:g}, {row.images} images, n={row.n}", color=color, marker=marker)
        told.append(f"{row.lr:g} ends at {row.ours:.1f} %")
        if cells.of_the_paper(runs):
            look = {"color": color, "mfc": "white", "linewidth": 0.9, "marker": marker, "markersize": 4}
            axes.plot(*published.curve("sweep", row.lr), "--", **look)
    if not told:
        return None
    if cells.of_the_paper(runs):
        axes.plot([], [], "o--", mfc="white", color=GREY, markersize=4, linewidth=0.9, label="the paper's, test images")
    images = " and ".join(table["images"].unique())
    axes.set(xlabel="epoch", ylabel="accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    say_floor(axes)
    figure.legend(loc="outside upper center", ncols=1, title="learning rate")
    return described(figure, f"{images.capitalize()} accuracy by epoch for each learning rate: {'; '.join(told)}.")


@styled
def baseline(runs: pd.DataFrame) -> Figure | None:
    """Fig. 3: loss and accuracy of the baseline by epoch, training and validation."""
    mine = cells.of_setting(runs, cells.BASELINE)
    curves = tables.history(mine)
    if curves.empty:
        return None
    p = mine.iloc[0]["params"]
    done_to_images = ["augmented"] + ["mixed"] * bool(p["mixup"] or p["cutmix"])
    figure, (loss, accuracy) = _new(5.4, rows=2, sharex=True)
    _curve(loss, curves, "loss", f"training, as optimised ({', '.join(done_to_images)})", color=GREY, linestyle=":")
    for part, name, look in (("train", "training", PAPER), ("val", "validation", OURS)):
        _curve(loss, curves, f"{part}_loss", None, color=look["color"], linestyle=look["linestyle"])
        _curve(accuracy, curves, f"{part}_acc", f"{name}, no augmentation", **look)
    if "test_acc" in curves:
        _curve(
            accuracy, curves, "test_acc", "test, watched every epoch: a leak", color=PURPLE, marker="^", linestyle="-."
        )
    if _as_the_papers(p):
        hollow = {"color": ORANGE, "mfc": "white", "linestyle": ""}
        for run, marker in (("kernel-9", "D"), ("patch-1", "^")):
            accuracy.plot(*published.curve(run), label=f"the paper's {run} run, test", marker=marker, **hollow)
    loss.set(ylabel="loss", ylim=(0, None))
    accuracy.set(xlabel="epoch", ylabel="accuracy (%)")
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    say_floor(accuracy)
    figure.legend(loc="outside upper center", ncols=1)
    ends = curves[curves["epoch"] == curves["epoch"].max()].mean(numeric_only=True)
    told = [f"{name} {ends[key]:.1f} %" for name, key in (("training", "train_acc"), ("validation", "val_acc"))
            if pd.notna(ends.get(key))]  # fmt: skip
    text = f"Loss and accuracy by epoch over {curves['epoch'].max()} epochs and {curves['run'].nunique()} seed(s)"
    return described(figure, f"{text}; accuracy after the last: {', '.join(told)}.")


@styled
def curves(runs: pd.DataFrame) -> Figure | None:
    """Accuracy by epoch, a panel for each configuration: on training images and on those that were watched while
    training (validation, or test where a study watches that; or none), and what the paper's notebooks print of the
    same budget.
    """
    history = tables.history(runs)
    groups = {label: history[history["run"].isin(rows["run"])] for label, rows in cells.configurations(runs).items()}
    groups = {label: mine for label, mine in groups.items() if len(mine)}
    if not groups:
        return None
    columns = min(2, len(groups))
    rows = -(-len(groups) // columns)
    figure = Figure((WIDTH, max(3.4, 1.7 * rows + 0.9)), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    told = []
    for axes, (label, mine) in zip(panels.flat, groups.items(), strict=False):
        names = {"train_acc": "training images", "watched": "test images"}
        if mine["val_acc"].notna().any():
            names["watched"] = "validation images"
        for (column, name), look in zip(names.items(), (PAPER, OURS), strict=True):
            alone = mine["epoch"].nunique() == 1  # a line of one point would not be seen
            _curve(axes, mine, column, name, **look | ({} if alone else {"marker": ""}))
        params = runs.loc[runs["run"].isin(mine["run"]), "params"].iloc[0]
        for setting in sorted(set().union(*mine["settings"])) if _as_the_papers(params) else ():
            if (points := published.curve(setting))[0]:
                dots: dict[str, Any] = {"color": GREEN, "mfc": "white", "linestyle": "", "markersize": 5, "marker": "D"}
                axes.plot(*points, label="the paper's notebooks, test images", **dots)
        axes.set_title(label, fontsize=9)
        axes.set(xlabel="", ylabel="")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        ends = mine[mine["epoch"] == mine["epoch"].max()].mean(numeric_only=True)
        found = [f"{ends[column]:.1f} % on {name}" for column, name in names.items() if pd.notna(ends[column])]
        told.append(f"{label}: {' and '.join(found)}")
    for axes in panels.flat[len(groups) :]:
        axes.set_axis_off()
    figure.supxlabel("epoch", fontsize=10)
    figure.supylabel(f"accuracy (%), axis starts at {panels[0, 0].get_ylim()[0]:.0f} %", fontsize=10)
    shown = {}
    for axes in panels.flat:
        shown |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    place: Any = "outside upper center"  # which the stubs do not know
    figure.legend(list(shown.values()), list(shown), loc=place, ncols=2, columnspacing=1.2)
    return described(figure, f"Accuracy by epoch, at the end: {'; '.join(told)}.")


def _as_the_papers(params: dict) -> bool:
    """Whether a run has the paper's network, its number of epochs and its images, all of them."""
    theirs = Params().computed()
    return all(params.get(name) == theirs[name] for name in ("arch", "dim", "depth", "epochs", "train_size", "dataset"))


@styled
def both_ablations(runs: pd.DataFrame) -> Figure:
    """The study at a glance: both ablations, levels above in small and changes from the first size below."""
    figure = Figure((WIDTH, 4.6), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", height_ratios=(1, 1.7))
    told = []
    for (above, below), what, table in zip(
        grid.T, ("kernel", "patch"), (tables.kernel(runs), tables.patch(runs)), strict=True
    ):
        names = _levels_and_changes(above, below, runs, table, what)
        below.set_xticks(range(len(names)), names)  # there is no room to say which have no result
        ours = [f"{what[0]}={row[what]:.0f} {row['ours']:.2f} %" for _, row in table.iterrows() if row["n"]]
        told.append(f"by {what} size, ours: {', '.join(ours) or 'no finished run'}")
    grid[0, 1].set_ylabel("")
    figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, columnspacing=1.2)
    theirs = "; with the paper's and the original's" if cells.of_the_paper(runs) else ""
    return described(figure, f"Test accuracy {'; '.join(told)}{theirs}.")


@styled
def kernel(runs: pd.DataFrame) -> Figure:
    """Fig. 4: test accuracy by kernel size, and what each size changes."""
    return _ablation(runs, tables.kernel(runs), "kernel")


@styled
def patch(runs: pd.DataFrame) -> Figure:
    """Fig. 5: test accuracy by patch size, and what each size changes."""
    return _ablation(runs, tables.patch(runs), "patch")


@styled
def speed(bench: dict | None) -> Figure | None:
    """What kernel and patch size cost, ConvMixer-256/8: images a second in training, and memory."""
    table = tables.speed(bench)
    table = table[table["network"].str.startswith("256/8")] if len(table) else table
    if table.empty:
        return None
    figure, panels = _new(5.4, rows=2, sharex=True)
    names = [f"k={row.kernel}\np={row.patch}" for row in table.itertuples()]
    looks = {
        "native": ("native layers", OURS),
        "tuned": ("PyTorch's best", PAPER),
        "default": ("PyTorch", ORIGINAL),
    }
    for axes, unit in zip(panels, ("images", "mb"), strict=True):
        for which, (label, look) in looks.items():
            # No line: from one network to the next there is nothing in between.
            axes.plot(names, table[f"{which}_{unit}"], label=label, **{**look, "linestyle": ""})
    panels[0].set(yscale="log", ylabel="images/s (log scale)")
    panels[0].yaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}", minor_locator=NullLocator())
    panels[1].set(ylim=(0, None), ylabel="peak memory (MB)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, columnspacing=1.2)
    told = [f"k={row.kernel}, p={row.patch}: {row.native_images:.0f}" for row in table.itertuples()]
    return described(figure, f"Images a second in training with the native layers: {'; '.join(told)}.")


@styled
def gap(table: pd.DataFrame, patch: int = 4) -> Figure | None:
    """From the paper's accuracy at a patch size to the original's, a bar for each change: the table of lib.report.gap.

    What others published is hollow. A bar stands on the level above it that has a finished run.
    """
    if not table.loc[table["study"] != "", "n"].any():
        return None
    figure, (axes,) = _new(0.66 * len(table) + 0.5)
    told = []
    across = axes.get_yaxis_transform()
    for i, row in enumerate(table.itertuples()):
        axes.text(
            0.01, i - 0.3, row.change + (f" (n={row.n})" if row.study and row.n else ""), transform=across, fontsize=8.5
        )
        if pd.isna(row.accuracy):
            axes.text(0.5, i + 0.05, "no finished run", transform=across, ha="center", va="center", color=GREY)
            continue
        step = 0 if pd.isna(row.step) else row.step
        face = BLUE if row.study else "white"
        axes.barh(i, step, left=row.accuracy - step, height=0.34, color=GREEN if step >= 0 else ORANGE, alpha=0.8)
        axes.errorbar(row.accuracy, i, xerr=row.half, fmt="o", color=BLUE, mfc=face, capsize=4, markersize=5)
        change = "" if pd.isna(row.step) else f" ({signed(step)}{interval(row.step_half)})"
        axes.annotate(f"{row.accuracy:.2f}{change}", (row.accuracy, i + 0.36), ha="center", va="center", fontsize=8)
        told.append(f"{row.change}: {row.accuracy:.2f} %{change}")
    axes.set(ylim=(len(table) - 0.4, -0.6), yticks=[], xlabel=f"test accuracy at k=9, p={patch} (%)")
    axes.use_sticky_edges = False
    axes.margins(x=0.12)  # half of a label stands outside its point
    return described(figure, f"The gap at p={patch}, level by level. {'; '.join(told)}.")


def _ablation(runs: pd.DataFrame, table: pd.DataFrame, what: str) -> Figure:
    """Above, accuracies as they are; below, each series as its change from one level, since they differ in height."""
    figure, (above, below) = _new(5.6, rows=2, sharex=True)
    names = _levels_and_changes(above, below, runs, table, what)
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2)
    ours = [f"{n} {row.ours:.2f} % (n={row.n})" if row.n else f"{n} {row.status}"
            for n, row in zip(names, table.itertuples(), strict=True)]  # fmt: skip
    theirs = [f"{n} {row.paper:.2f} and {row.original:.2f} %" for n, row in zip(names, table.itertuples(), strict=True)
              if row.paper > 0]  # fmt: skip
    beside = f" The paper and the original: {', '.join(theirs)}." if cells.of_the_paper(runs) else ""
    return described(figure, f"Test accuracy by {what} size. Ours: {', '.join(ours)}.{beside}")


def _levels_and_changes(above, below, runs: pd.DataFrame, table: pd.DataFrame, what: str) -> list[str]:
    """Accuracies as they are on one axis, each series' change from the first size that we have on the other.

    Returns the sizes' names.
    """
    found = table.index[table["n"] > 0]
    first = found[0] if len(found) else 0
    seeds = [cells.by_seed(runs, setting) for setting in table["setting"]]
    _points(above, [stats.mean(list(values.values())) for values in seeds], seeds, "ours")
    changes = [{s: values[s] - seeds[first][s] for s in values if s in seeds[first]} for values in seeds]
    _points(below, [stats.mean(list(values.values())) for values in changes], changes, None)
    theirs = (("the paper", "paper", PAPER), ("the original", "original", ORIGINAL))
    for name, column, look in theirs if cells.of_the_paper(runs) else ():
        above.plot(table.index, table[column], label=name, **look)
        below.plot(table.index, table[column] - table.loc[first, column], **look)
    names = [f"{what[0]}={size:.0f}" for size in table[what]]
    below.axhline(0, color=GREY, linewidth=0.8, zorder=0)
    empty = ["" if n else "\nno result" for n in table["n"]]
    below.set_xticks(table.index, [name + note for name, note in zip(names, empty, strict=True)])
    below.set(xlabel=f"{what} size", ylabel=f"change from {names[first]} (points)")
    above.set(ylabel="test accuracy (%)")
    say_floor(above)
    return names


def _points(axes, means: list[stats.Mean], seeds: list[dict], label: str | None) -> None:
    """Means joined by a line, every seed's point beside it and the interval where there is one to show."""
    at = [i for i, m in enumerate(means) if m.n]
    axes.plot(at, [means[i].mean for i in at], label=label, zorder=3, **OURS)
    for i in (i for i in at if means[i].n > 1):
        # Seeds are set off to the side: on the mean they would hide the interval.
        axes.plot([i + 0.1] * means[i].n, list(seeds[i].values()), "o", color=BLUE, markersize=3.5, alpha=0.55)
        axes.errorbar(i, means[i].mean, means[i].half, color=BLUE, capsize=4, zorder=3)


def _curve(axes, curves: pd.DataFrame, column: str, label: str | None, **look) -> None:
    """A column by epoch: the mean over seeds and, behind it, their whole range."""
    curves = curves.assign(**{column: curves[column].astype(float)}).dropna(subset=[column])
    if len(curves):
        sns.lineplot(
            curves, x="epoch", y=column, ax=axes, label=label, legend=False, errorbar=("pi", 100), markersize=5, **look
        )


def _new(height: float, rows: int = 1, **how) -> tuple[Figure, list]:
    figure = Figure((WIDTH, height), layout="constrained")
    axes = figure.subplots(rows, 1, squeeze=False, **how)
    figure.align_ylabels()
    return figure, list(axes[:, 0])
