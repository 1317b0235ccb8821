"""What accuracy costs: test accuracy against measured speed, arithmetic and memory, and which settings are worth it."""

import itertools
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from matplotlib.transforms import Bbox

from lib.report import captions, cells, stats
from lib.report.columns import timed
from lib.report.style import BLUE, GREY, ORANGE, WIDTH, described, say_floor, styled


class Cost(NamedTuple):
    """One way to count what a setting costs: a column of records.load, and how an axis and a sentence call it."""

    column: str
    axis: str
    name: str
    more_is_better: bool = False
    measured: bool = True  # on a machine: others give other numbers
    log: bool = True  # the axis
    over_seeds: str = "mean"


COSTS = (
    Cost("fastest_images_per_second", "images a second in training", "speed", more_is_better=True, over_seeds="max"),
    Cost("forward_macs", "million multiply-accumulates an image", "multiply-accumulates", measured=False),
    Cost("peak_memory_mb", "peak memory of the process (MB)", "peak memory", log=False, over_seeds="min"),
)


def points(runs: pd.DataFrame) -> pd.DataFrame:
    """A row for each configuration with finished runs: setting, accuracy with half its interval (%), n, each of COSTS.

    Costs are those of the seed that is least disturbed: the fastest epoch, the least memory (of runs in one go, since
    a checkpoint that is read takes more). Where several machines trained, measured costs are of one of them alone
    (cells.on_one_machine). MACs in millions.
    """
    rows, done = [], runs[runs["status"] == "done"]
    one = cells.on_one_machine(runs)
    in_one_go = one["record"].map(lambda record: not record.get("resumed")).astype(bool)
    measured = one.assign(peak_memory_mb=one["peak_memory_mb"].where(in_one_go))
    for setting, group in cells.configurations(done).items():
        ours, there = stats.mean(group["test_acc"]), measured.index.intersection(group.index)
        row = {"setting": setting, "accuracy": ours.mean, "half": ours.half, "n": ours.n}
        for cost in COSTS:
            found = measured.loc[there, cost.column] if cost.measured else group[cost.column]
            row[cost.column] = getattr(found, cost.over_seeds)()
        rows.append(row)
    table = pd.DataFrame(rows, columns=["setting", "accuracy", "half", "n", *(cost.column for cost in COSTS)])
    table["forward_macs"] /= 1e6
    return table


def comparable(table: pd.DataFrame) -> list[Cost]:
    """Those of COSTS that at least two settings of `points` have, and not all the same."""
    return [cost for cost in COSTS if table.loc[table[cost.column] > 0, cost.column].nunique() > 1]


def pareto(table: pd.DataFrame, cost: Cost) -> pd.DataFrame:
    """The rows of `points` that no other beats in both accuracy and cost (in one, and is as good in the other)."""
    price = -table[cost.column] if cost.more_is_better else table[cost.column]
    kept = []
    for accuracy, own in zip(table["accuracy"], price, strict=True):
        as_good = (table["accuracy"] >= accuracy) & (price <= own)
        better = (table["accuracy"] > accuracy) | (price < own)
        kept.append(pd.notna(own) and not (as_good & better).any())
    return table[kept].sort_values(cost.column)


@timed
@styled
def accuracy_against_cost(runs: pd.DataFrame) -> Figure | None:
    """Test accuracy against each cost, a point for each setting; filled and joined are those that no other beats."""
    table = points(runs)
    costs = comparable(table)
    if not costs:
        return None
    figure = Figure((WIDTH, 2.6 * len(costs)), layout="constrained")
    for axes, cost in zip(figure.subplots(len(costs), 1, sharey=True, squeeze=False)[:, 0], costs, strict=True):
        best = pareto(table, cost)
        axes.plot(best[cost.column], best["accuracy"], color=ORANGE, linewidth=1.2, zorder=1)
        for row in table.to_dict("records"):
            fill = BLUE if row["setting"] in set(best["setting"]) else "white"
            axes.errorbar(row[cost.column], row["accuracy"], row["half"], fmt="o", color=BLUE, mfc=fill, capsize=3)
        axis = cost.axis + (" (log)" if cost.log else "")
        axes.set(xlabel=f"{axis}  cheaper →" if cost.more_is_better else f"← cheaper  {axis}")
        axes.set_ylabel("test accuracy (%)")
        if cost.log:
            axes.set_xscale("log")
            axes.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axes.margins(x=0.25, y=0.2)
    say_floor(figure.axes[0])
    figure.draw_without_rendering()  # only now is it known where the points lie
    for axes, cost in zip(figure.axes, costs, strict=True):
        _name_points(axes, table, cost)
    return described(figure, " ".join(["Test accuracy against cost.", *worth(runs)]))


def _name_points(axes, table: pd.DataFrame, cost: Cost) -> None:
    """Writes each setting beside its point, at the nearest place that covers no interval, line or other name."""
    unit = axes.figure.dpi / 72  # pixels in a point
    half = table["half"].fillna(0)
    edges = (np.column_stack([table[cost.column], table["accuracy"] + side * half]) for side in (-1, 1))
    ends = zip(*map(axes.transData.transform, edges), strict=True)
    taken = [Bbox([low - 4 * unit, high + 4 * unit]) for low, high in ends]
    best = pareto(table, cost)
    line = axes.transData.transform(best[[cost.column, "accuracy"]].to_numpy())
    for start, end in itertools.pairwise(line):
        places = start + np.linspace(0, 1, max(2, int(np.hypot(*(end - start)) / (3 * unit))))[:, None] * (end - start)
        taken += [Bbox([place - unit, place + unit]) for place in places]
    for row in table.to_dict("records"):
        name, at = row["setting"], (row[cost.column], row["accuracy"])
        size = np.array([4.7 * len(name), 8])  # points, of text of 8 points
        places = [(x, y) for y in (-4, 6, -14, 16, -24, 26, -34, -44) for x in (7, -7 - size[0])]
        corners = [axes.transData.transform(at) + np.array(place) * unit for place in places]
        boxes = [Bbox([corner, corner + size * unit]) for corner in corners]
        inside = [axes.bbox.contains(*box.min) and axes.bbox.contains(*box.max) for box in boxes]
        chosen = min(range(len(places)), key=lambda i: (not inside[i], boxes[i].count_overlaps(taken), i))
        taken.append(boxes[chosen])
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.6} if abs(places[chosen][1] + 4) > 10 else None
        text = axes.annotate(name, at, places[chosen], fontsize=8, textcoords="offset points", arrowprops=line)
        text.set_path_effects([withStroke(linewidth=2, foreground="white")])
        text.set_in_layout(False)


def worth(runs: pd.DataFrame) -> list[str]:
    """Which settings no other beats in both accuracy and cost, in one sentence."""
    table = points(runs)
    lines: dict[str, list[str]] = {}
    for cost in comparable(table):
        lines.setdefault(", ".join(f"`{name}`" for name in pareto(table, cost)["setting"]), []).append(cost.name)
    if not lines:
        return []
    found = "; ".join(f"{names} by {' and '.join(costs)}" for names, costs in lines.items())
    return [
        f"No other setting is both cheaper and more accurate than these, by their means: {found}.",
        *captions.of_one_machine(runs),
    ]
