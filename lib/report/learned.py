"""What trained networks look like inside, from the small arrays that every run leaves (see explore.look_inside).

The drawing functions take {label: arrays}, so a notebook can draw one network and the report one of each setting.
"""

import contextlib
import math

import numpy as np
import pandas as pd
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from lib import records
from lib.params import IMAGE, UNUSED
from lib.report import cells
from lib.report.columns import number, shows, words
from lib.report.style import WIDTH, described, styled

TILES, COLUMNS = 64, 16  # filters of a patch embedding that are shown, the largest first; how many in a row
STRIDE = {"cnn": 8}  # pixels from one place of its features to the next: three poolings by two
CHANNELS = 9  # depthwise kernels of a block that are shown, the largest first


def networks(runs: pd.DataFrame, what: str) -> dict[str, dict]:
    """The arrays of the first finished seed of each setting of an ablation, by label (k=3, p=1), with its record."""
    found = {}
    for setting in cells.ablation(runs, what):
        rows = cells.of_setting(runs, setting)
        done = rows[rows["status"] == "done"]
        if len(done):
            record = done.iloc[0]["record"]
            with contextlib.suppress(records.RecordError):  # a table of the page says what is wrong with it
                found |= one(record, records.read_arrays(record))
    return found


def one(record: dict, arrays: dict[str, np.ndarray]) -> dict[str, dict]:
    """One run for the drawing functions, by k and p: its record and its arrays, as records.read_arrays gives them."""
    name, _, sizes = records.network_name(record).partition(", ")
    return {sizes or name: {**arrays, "record": record}}


@styled
def patch_embeddings(found: dict[str, dict]) -> Figure | None:
    """The filters that turn patches into channels, as coloured tiles: a row of tiles for each network."""
    found = {label: arrays for label, arrays in found.items() if "patch_embedding" in arrays}
    if not found:
        return None
    rows = [math.ceil(min(TILES, len(arrays["patch_embedding"])) / COLUMNS) for arrays in found.values()]
    figure = Figure((WIDTH, sum(0.31 * n + 0.28 for n in rows)), layout="constrained")
    panels = figure.subplots(len(found), 1, squeeze=False, height_ratios=rows)[:, 0]
    for axes, (label, arrays) in zip(panels, found.items(), strict=True):
        filters = arrays["patch_embedding"].astype(np.float32)  # (h, 3, p, p)
        order = np.argsort(-np.square(filters).sum((1, 2, 3)), kind="stable")[:TILES]
        size = np.abs(filters[order]).max((1, 2, 3), keepdims=True)
        tiles = 0.5 + 0.5 * filters[order] / np.maximum(size, 1e-12)  # grey: a weight of zero
        axes.imshow(mosaic(tiles.transpose(0, 2, 3, 1), COLUMNS), interpolation="nearest")
        axes.set_title(f"{label}: the {len(order)} largest of {len(filters)} filters", loc="left", fontsize=9)
        axes.set_axis_off()
    return described(figure, f"Filters of the patch embedding as colours, for {' and '.join(found)}.")


@styled
def kernels(found: dict[str, dict]) -> Figure | None:
    """Depthwise kernels, the largest of the first, the middle and the last block: a row for each network."""
    found = {label: arrays for label, arrays in found.items() if "depthwise" in arrays}
    if not found:
        return None
    columns = max(len(arrays["depthwise"]) for arrays in found.values())
    figure = Figure((WIDTH, 1.75 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), columns, squeeze=False)
    for row, (label, arrays) in zip(grid, found.items(), strict=True):
        for axes in row:
            axes.set_axis_off()
        for axes, block, weights in zip(row, arrays["blocks"], arrays["depthwise"].astype(np.float32), strict=False):
            order = np.argsort(-np.square(weights).sum((1, 2)), kind="stable")[:CHANNELS]
            size = np.abs(weights[order]).max((1, 2), keepdims=True)
            tiles = weights[order] / np.maximum(size, 1e-12)
            axes.imshow(mosaic(tiles, columns=3, fill=np.nan), cmap="PuOr_r", vmin=-1, vmax=1, interpolation="nearest")
            axes.set_title(f"{label}, block {block + 1}", fontsize=9)
    return described(figure, f"Depthwise kernels of {' and '.join(found)}; purple is negative, orange positive.")


@styled
def receptive_fields(found: dict[str, dict]) -> Figure | None:
    """Effective receptive fields as maps over the image, with the square that the kernels could reach at most."""
    if not found:
        return None
    columns = min(4, max(2, len(found)))  # one alone need not be as wide as the page
    rows = math.ceil(len(found) / columns)
    figure = Figure((WIDTH, 1.62 * rows * 4 / columns), layout="constrained")
    for axes in figure.subplots(rows, columns, squeeze=False).flat:
        axes.set_axis_off()
    told = []
    for axes, (label, arrays) in zip(figure.axes, found.items(), strict=False):
        field = arrays["receptive_field"]
        scale = SymLogNorm(linthresh=1e-3, vmin=0, vmax=1)
        axes.imshow(field / field.max(), cmap="viridis", norm=scale, interpolation="nearest")
        place, theory = middle(arrays["record"]["params"]), theoretical(arrays["record"]["params"])
        side = side_holding(field, place, 0.5)
        for width, color in ((theory, "white"), (side, "#D55E00")):
            if math.isnan(width):
                continue
            low, high = max(-0.3, place - width / 2), min(IMAGE - 0.7, place + width / 2)
            axes.add_patch(Rectangle((low, low), high - low, high - low, fill=False, edgecolor=color, linewidth=1.2))
        of = "" if math.isnan(theory) else f" of {theory}"
        axes.set_title(f"{label}\n{side}{of} px", fontsize=8)
        told.append(f"{label}: half of the gradient within {side}{of} pixels")
    return described(figure, f"Effective receptive fields. {'; '.join(told)}.")


@shows(
    words("network", "network", "short"), number("theoretical", "could reach (px)", "{:.0f}"),
    number("half", "half of the gradient within (px)", "{}"), number("most", "95 % within (px)", "{}"),
)  # fmt: skip
def reach(found: dict[str, dict]) -> pd.DataFrame:
    """How far a network could see, and how far it looks: sides of squares that hold shares of the gradient."""
    rows = []
    for label, arrays in found.items():
        params, field = arrays["record"]["params"], arrays["receptive_field"]
        half, most = (side_holding(field, middle(params), share) for share in (0.5, 0.95))
        rows.append({"network": label, "theoretical": theoretical(params), "half": half, "most": most})
    return pd.DataFrame(rows)


def theoretical(params: dict) -> float:
    """The side (pixels) of the square that the last block's middle place can depend on: p (1 + d (k - 1)).

    NaN for what is no ConvMixer.
    """
    if params.get("arch", "convmixer") != "convmixer":
        return math.nan
    return params["patch"] * (1 + params["depth"] * (params["kernel"] - 1))


def middle(params: dict) -> float:
    """The row and column (pixels, from 0) on which the place that explore.receptive_field asks about is centred.

    A network of your own that has no patches is taken to see the image as one place.
    """
    arch = params.get("arch", "convmixer")
    patch = STRIDE.get(arch, IMAGE) if "patch" in UNUSED[arch] else params["patch"]
    return patch * (IMAGE // patch // 2) + (patch - 1) / 2


def inside(field: np.ndarray, side: int, place: float) -> float:
    """The share of a field that lies in the square of `side` pixels around (place, place); cut pixels count in part."""
    weights = np.clip(side / 2 + 0.5 - np.abs(np.arange(IMAGE) - place), 0, 1)
    return float(weights @ field @ weights / field.sum())


def side_holding(field: np.ndarray, place: float, share: float) -> int:
    """The side (pixels) of the smallest such square that holds this share of a field."""
    return next(side for side in range(1, 2 * IMAGE + 1) if inside(field, side, place) >= min(share, 1 - 1e-6))


def mosaic(tiles: np.ndarray, columns: int, fill: float = 1.0) -> np.ndarray:
    """Tiles (N, size, size, …) side by side with a line between them, `columns` in a row."""
    rows, size = math.ceil(len(tiles) / columns), tiles.shape[1]
    gap = max(1, size // 4)
    sheet = np.full((rows * (size + gap) - gap, columns * (size + gap) - gap, *tiles.shape[3:]), fill, np.float32)
    for i, tile in enumerate(tiles):
        top, left = i // columns * (size + gap), i % columns * (size + gap)
        sheet[top : top + size, left : left + size] = tile
    return sheet
