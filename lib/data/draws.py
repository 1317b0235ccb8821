"""Every random number of the data path, as a function of seed, epoch and purpose.

A counter-based generator (Philox) is keyed by the seed and the epoch and counts from a place of its own for each
purpose. So there is no random state to save, and nothing depends on workers, batch size or where a run stopped; and
one augmentation can be switched off without changing the draws of the others.
"""

from enum import IntEnum

import numpy as np


class Purpose(IntEnum):
    """What draws are for. The numbers are part of the numerics: new ones go to the end."""

    ORDER, CROP, FLIP, RANDAUGMENT, JITTER, ERASING, NOISE, MIX = range(8)


def philox(seed: int, epoch: int, purpose: Purpose, batch: int = 0) -> np.random.Philox:
    """The generator for one purpose in one epoch (and one batch); streams of different arguments never overlap.

    seed, epoch, batch: from 0 to 2^64 - 1, OverflowError otherwise.
    """
    words = np.array([seed, epoch, 0, 0, batch, purpose], np.uint64)  # a list would pass through float64
    return np.random.Philox(key=words[:2], counter=words[2:])


def uniform(seed: int, epoch: int, purpose: Purpose, rows: int, columns: int) -> np.ndarray:
    """Table (rows, columns) of float64, 0 < u < 1; a row depends on its index and on `columns`, not on `rows`."""
    words = philox(seed, epoch, purpose).random_raw(rows * columns)
    return ((words >> 12).reshape(rows, columns) + 0.5) * 2.0**-52


def order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order in which an epoch visits n images: an int64 permutation of range(n)."""
    return np.argsort(philox(seed, epoch, Purpose.ORDER).random_raw(n), kind="stable")
