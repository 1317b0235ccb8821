"""Figures of one run, for the notebooks train and explore; figures.py has those of a whole study."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

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


def confusion(predicted: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """How often a true class (row) is taken for each of `classes` (column), in per cent of the row.

    predicted, labels: (N,). Of many classes only colours and every few names have room.
    """
    counts = np.zeros((len(classes), len(classes)))
    np.add.at(counts, (labels, predicted), 1)
    shares = 100 * counts / counts.sum(1, keepdims=True)
    figure = Figure((7, 6), layout="constrained")
    axes = figure.subplots()
    few, every = len(classes) <= 20, -(-len(classes) // 25)
    sns.heatmap(shares, annot=few, fmt=".0f", cmap="Blues", cbar=False, square=True, ax=axes, vmin=0, vmax=100,
                xticklabels=every, yticklabels=every)  # fmt: skip
    axes.set(xlabel="predicted", ylabel="true", xticklabels=classes[::every], yticklabels=classes[::every])
    axes.tick_params(axis="x", rotation=45 if few else 90)
    axes.tick_params(axis="y", rotation=0)
    return figure


def mistakes(
    images: np.ndarray, labels: np.ndarray, chances: np.ndarray, classes: tuple[str, ...], count: int = 12
) -> Figure:
    """The images (N, 32, 32, 3) that are wrong with the greatest probability; chances is (N, classes)."""
    said = chances.argmax(1)
    wrong = np.flatnonzero(said != labels)
    worst = wrong[np.argsort(-chances[wrong].max(1))][:count]
    figure = Figure((9, 4), layout="constrained")
    for cell, i in zip(figure.subplots(2, -(-count // 2)).flat, worst, strict=False):
        cell.imshow(images[i])
        cell.set_title(f"{classes[labels[i]]}\n→ {classes[said[i]]} {100 * chances[i].max():.0f} %", fontsize=9)
    for cell in figure.axes:
        cell.set_axis_off()
    return figure


def kernels(model) -> Figure:
    """The depthwise kernels of 16 channels of the first (top) and of the last block."""
    figure = Figure((9, 5), layout="constrained")
    for part, block, name in zip(figure.subfigures(2, 1), (0, -1), ("first", "last"), strict=True):
        weights = depthwise(model)[block][:16]  # (16, k, k)
        limit = np.abs(weights).max()
        part.suptitle(f"{name} block", fontsize=10)
        for cell, weight in zip(part.subplots(2, 8).flat, weights, strict=False):
            cell.imshow(weight, cmap="RdBu_r", vmin=-limit, vmax=limit)
        for cell in part.axes:
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
