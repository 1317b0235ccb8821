"""Figures of one run, for the notebooks train and explore; figures.py has those of a whole study."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.records import CLASSES
from lib.report import figures


def augmented(images: np.ndarray, shown: np.ndarray) -> Figure:
    """Images (N, 32, 32, 3) beside what E epochs make of them, (E, N, 32, 32, 3); values in 0..1."""
    columns = [images, *shown]
    figure = Figure((len(columns), len(images)), layout="constrained")
    grid = figure.subplots(len(images), len(columns), squeeze=False)
    for axes, pictures in zip(grid.T, columns, strict=True):
        for cell, picture in zip(axes, pictures, strict=True):
            cell.imshow(picture)
            cell.set_axis_off()
    grid[0, 0].set_title("as it is", fontsize=9)
    for number, axes in enumerate(grid[0, 1:], start=1):
        axes.set_title(f"epoch {number}", fontsize=9)
    return figure


def curves(record: dict) -> Figure:
    """Loss and accuracy by epoch, training and validation, of a finished run's record."""
    history = pd.DataFrame(record["history"])
    figure = Figure((8, 3), layout="constrained")
    for axes, what, unit in zip(figure.subplots(1, 2), ("loss", "acc"), ("loss", "accuracy (%)"), strict=True):
        for part, name, look in (("train", "training", figures.PAPER), ("val", "validation", figures.OURS)):
            axes.plot(history["epoch"], history[f"{part}_{what}"].astype(float), label=name, **look)
        axes.set(xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    return figure


def live_curves() -> Callable:
    """For `fit` to call, in a notebook: the curves of the epochs so far, each time in the place of those before."""
    from IPython.display import DisplayHandle

    place = DisplayHandle()

    def show(clock) -> None:
        history = clock.state.history
        if clock.state.step == 0:
            (place.update if len(history) > 1 else place.display)(curves({"history": history}))

    return show


def confusion(predicted: np.ndarray, labels: np.ndarray) -> Figure:
    """How often a true class (row) is taken for each class (column), in per cent of the row."""
    counts = np.zeros((10, 10))
    np.add.at(counts, (labels, predicted), 1)
    shares = 100 * counts / counts.sum(1, keepdims=True)
    figure = Figure((7, 6), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(shares, annot=True, fmt=".0f", cmap="Blues", cbar=False, square=True, ax=axes, vmin=0, vmax=100)
    axes.set(xlabel="predicted", ylabel="true", xticklabels=CLASSES, yticklabels=CLASSES)
    axes.tick_params(axis="x", rotation=45)
    axes.tick_params(axis="y", rotation=0)
    return figure


def mistakes(images: np.ndarray, labels: np.ndarray, chances: np.ndarray, count: int = 12) -> Figure:
    """The images (N, 32, 32, 3) that are wrong with the greatest probability; chances is (N, 10)."""
    said = chances.argmax(1)
    wrong = np.flatnonzero(said != labels)
    worst = wrong[np.argsort(-chances[wrong].max(1))][:count]
    figure = Figure((9, 4), layout="constrained")
    for cell, i in zip(figure.subplots(2, -(-count // 2)).flat, worst, strict=False):
        cell.imshow(images[i])
        cell.set_title(f"{CLASSES[labels[i]]}\n→ {CLASSES[said[i]]} {100 * chances[i].max():.0f} %", fontsize=9)
    for cell in figure.axes:
        cell.set_axis_off()
    return figure


def reach(model) -> Figure:
    """Mean size of the depthwise weights by their distance from the middle, each block relative to its largest."""
    rows = []
    for number, weights in enumerate(depthwise(model), start=1):
        k = weights.shape[-1]
        y, x = np.indices((k, k)) - (k - 1) / 2
        distance = np.maximum(np.abs(x), np.abs(y))
        sizes = pd.Series(np.abs(weights).mean(0).ravel()).groupby(distance.ravel()).mean()
        rows += [(number, steps, size) for steps, size in (sizes / sizes.max()).items()]
    table = pd.DataFrame(rows, columns=["block", "distance", "size"])
    figure = Figure((6, 3.5), layout="constrained")
    axes = figure.subplots()
    sns.lineplot(table, x="distance", y="size", hue="block", style="block", markers=True, palette="viridis", ax=axes)
    axes.set(xlabel="distance from the middle of the kernel (pixels)", ylabel="mean |weight|, relative", ylim=(0, None))
    return figure


def depthwise(model) -> list[np.ndarray]:
    """The depthwise kernels of each block, (dim, k, k)."""
    return [block[0].fn[0].weight.detach().cpu().numpy()[:, 0] for block in model.blocks]
