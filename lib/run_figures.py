"""The two figures of one run, for the training notebook; figures.py has those of a whole study."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lib import figures


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
        for part, name, look in (("train", "training", figures.STUDY), ("val", "validation", figures.OURS)):
            axes.plot(history["epoch"], history[f"{part}_{what}"].astype(float), label=name, **look)
        axes.set(xlabel="epoch", ylabel=unit)
    axes.legend()
    return figure
