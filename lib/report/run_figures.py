"""Figures of one run, for the notebooks train and explore; figures.py has those of a whole study."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lib.report.style import OURS, PAPER


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
        for part, name, look in (("train", "training", PAPER), ("val", "validation", OURS)):
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


def reach(model) -> Figure | None:
    """Mean size of the depthwise weights by their distance from the middle, each block relative to its largest.

    None for what is no ConvMixer.
    """
    if not (hasattr(model, "stem") and hasattr(model, "blocks")):
        return None
    import seaborn as sns  # a second that a training need not wait

    rows = []
    for number, block in enumerate(model.blocks, start=1):
        weights = block[0].fn[0].weight.detach().cpu().numpy()[:, 0]  # (dim, k, k)
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
