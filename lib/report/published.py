"""Every published figure that a table or a sentence compares with, each with its source. Standard library only.

"The paper" is Li, Lu & Liu, *ConvMixer Reproduction: Kernel and Patch Size Ablations on CIFAR-10*; "the original"
is Trockman & Kolter, *Patches Are All You Need?* (arXiv 2201.09792). Accuracies are per cent of the CIFAR-10 test
set for ConvMixer-256/8, unless a figure says otherwise.
"""

import csv
import math
import typing
from pathlib import Path

NETWORK = (256, 8)  # dim, depth of every network in the tables
EPOCHS, ORIGINAL_EPOCHS = 30, 200  # the paper's (Section III-C) and the original's, as the paper gives it (IV-D)
KERNELS, PATCHES = (3, 5, 7, 9), (1, 2, 4)  # the two ablations; the other size is 1 and 9


class Published(typing.NamedTuple):
    """One accuracy that somebody published, in per cent."""

    kernel: int
    patch: int
    accuracy: float
    source: str


# As printed. One configuration, k=9 and p=1, has three figures; none is corrected here.
BASELINE = Published(9, 1, 88.94, "the paper, Table I")
KERNEL = tuple(
    Published(kernel, 1, accuracy, "the paper, Table II")
    for kernel, accuracy in ((3, 85.65), (5, 86.98), (7, 88.40), (9, 88.94))
)
PATCH = tuple(
    Published(9, patch, accuracy, "the paper, Table III") for patch, accuracy in ((1, 89.97), (2, 86.30), (4, 80.96))
)
OVERALL = {  # Table IV, by the ablation whose run it names
    "kernel-3": Published(3, 1, 85.65, "the paper, Table IV, kernel ablation"),
    "kernel-9": Published(9, 1, 88.94, "the paper, Table IV, kernel ablation"),
    "patch-1": Published(9, 1, 89.97, "the paper, Table IV, patch ablation"),
    "patch-4": Published(9, 4, 80.96, "the paper, Table IV, patch ablation"),
    "baseline": Published(9, 1, 88.98, "the paper, Table IV, baseline"),
}

ORIGINAL = tuple(
    Published(kernel, patch, accuracy, "the original, as the paper quotes it")
    for kernel, patch, accuracy in (
        (3, 1, 93.61), (5, 1, 95.19), (7, 1, 95.80), (9, 1, 95.88), (9, 2, 95.00), (9, 4, 92.61),
    )
)  # fmt: skip

# Other readings of the original's Table 4 than the paper's: in no table.
READINGS = (
    Published(5, 1, 95.11, "second-hand: another reading of the original's Table 4"),
    Published(7, 1, 95.72, "second-hand: another reading of the original's Table 4"),
    Published(9, 2, 95.08, "second-hand: another reading of the original's Table 4"),
)

# Other systems at k=5, p=2 with a small budget; recipes and networks differ from the paper's.
CONTEXT = (
    Published(5, 2, 92.60, "locuslab/convmixer-cifar10, 25 epochs"),
    Published(5, 2, 90.83, "Lux.jl's ConvMixer example, 25 epochs"),
)

# The learning-rate sweep (Fig. 2), from the paper's notebook 03: the best test accuracy (%) of 10 epochs. It trained
# k=7 and p=4 with Adam, crop and flip; the paper does not say for which network the sweep is.
SWEEP_EPOCHS = 10
SWEEP = {1e-4: 67.93, 1e-3: 80.59, 1e-2: 78.16}


# Every accuracy and loss by epoch in the outputs of the paper's public notebooks (github.com/LOOK4869/ConvMixer).
CURVES = Path(__file__).with_name("paper_curves.csv")


class Compute(typing.NamedTuple):
    """A row of the paper's Table V: epochs over all runs, hours in total, minutes an epoch."""

    epochs: int
    hours: float
    minutes_per_epoch: float


COMPUTE = {"kernel": Compute(120, 10.0, 5.0), "patch": Compute(90, 4.5, 3.0)}

# Parameters and multiply-accumulates of one forward pass of one image, by (kernel, patch), for ConvMixer-256/8.
PARAMETERS = {
    (3, 1): 559_114, (5, 1): 591_882, (7, 1): 641_034, (9, 1): 706_570, (9, 2): 708_874, (9, 4): 718_090,
}  # fmt: skip
MEGA_MACS = {(3, 1): 556, (5, 1): 590, (7, 1): 640, (9, 1): 707, (9, 2): 177, (9, 4): 45}

# Standard deviation over seeds of CIFAR-10 test accuracy (points) after so many epochs, for another network
# (Jordan, arXiv 2304.01910): what seeds alone do, where too few of ours were run to say.
SEED_NOISE = {4: 0.56, 16: 0.19, 64: 0.15}


def curve(run: str, lr: float | None = None) -> tuple[list[int], list[float]]:
    """Epochs (1-based) and the test accuracies (%) after them that the paper's notebooks print for one of their runs.

    `run`: a setting such as kernel-9 (epochs 10, 20, 30), sweep with a learning rate, or another of paper_curves.csv.
    """
    with CURVES.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["run"] == run and (lr is None or float(row["lr"]) == lr)]
    return [int(row["epoch"]) for row in rows], [float(row["test_acc"]) for row in rows]


def last_epoch(setting: str) -> float:
    """The test accuracy (%) after the last epoch that the paper's notebooks print; NaN where they have none.

    The printed figures are the largest of any epoch.
    """
    return (curve(setting)[1] or [math.nan])[-1]


def original(kernel: int, patch: int) -> Published | None:
    """The original's figure for a configuration, None where it printed none."""
    return _find(ORIGINAL, kernel, patch)


def other_readings() -> float:
    """How far (points) other readings of the original's table are from those that the paper quotes, at most."""
    return max(abs(figure.accuracy - original(figure.kernel, figure.patch).accuracy) for figure in READINGS)


def printed(setting: str) -> Published | None:
    """The figure of the paper's own table for a setting such as kernel-3 (Table II) or patch-2 (Table III)."""
    ablation, _, size = setting.partition("-")
    if ablation == "kernel" and size.isdecimal():
        return _find(KERNEL, int(size), 1)
    if ablation == "patch" and size.isdecimal():
        return _find(PATCH, 9, int(size))
    return None


def context(kernel: int, patch: int) -> tuple[Published, ...]:
    """What else was published for a configuration that no table of the paper holds."""
    return tuple(figure for figure in CONTEXT if (figure.kernel, figure.patch) == (kernel, patch))


def all_printed(kernel: int, patch: int) -> tuple[float, ...]:
    """The different figures (%) that the paper prints for one configuration, ascending; three for the baseline."""
    figures = (BASELINE, *KERNEL, *PATCH, *OVERALL.values())
    return tuple(sorted({figure.accuracy for figure in figures if (figure.kernel, figure.patch) == (kernel, patch)}))


def _find(figures: tuple[Published, ...], kernel: int, patch: int) -> Published | None:
    return next((f for f in figures if (f.kernel, f.patch) == (kernel, patch)), None)
