"""From a data set's arrays (see datasets.py) to batches, augmented and plain."""

import sys
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.data import datasets
from lib.data.augment import Augment, Plan, normalise
from lib.params import Params
from lib.records import Normalisation


def steps(images: int, batch_size: int) -> int:
    """Steps an epoch; the last batch may be smaller."""
    return -(-images // batch_size)


def batches(
    augment: Augment,
    labels: np.ndarray,
    plan: Plan,
    order: np.ndarray,
    batch_size: int,
    first: int = 0,
    workers: int = 0,
    device: torch.device | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """The epoch's batches from number `first` on: images (B, 3, 32, 32) channels_last, labels (B,) int64.

    What a batch holds depends on its number alone, not on `first` or `workers`. For a CUDA device the memory is pinned.
    """
    dataset = _Batches(augment, labels, plan, order, batch_size)
    pin = device is not None and device.type == "cuda"
    numbers = range(first, len(dataset))
    # Workers that are forked share the images, as Linux had it before Python 3.14; they never touch CUDA.
    fork = "fork" if workers and sys.platform == "linux" else None
    loader = DataLoader(
        dataset, batch_size=None, sampler=numbers, num_workers=workers, multiprocessing_context=fork, pin_memory=pin
    )
    return iter(loader)


class _Batches(Dataset):
    """An epoch as a sequence of whole batches, so that a worker process makes a batch in one call."""

    def __init__(self, augment: Augment, labels: np.ndarray, plan: Plan, order: np.ndarray, batch_size: int):
        self.augment, self.labels, self.plan, self.order, self.batch_size = augment, labels, plan, order, batch_size

    def __len__(self) -> int:
        return steps(len(self.order), self.batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        return as_images(self.augment.batch(self.plan, rows)), torch.from_numpy(self.labels[rows].astype(np.int64))


def plain_batches(images: np.ndarray, batch_size: int, normalisation: Normalisation) -> Iterator[Tensor]:
    """Images (N, 32, 32, 3), uint8, in order and without augmentation, as batches (B, 3, 32, 32) for evaluation."""
    for first in range(0, len(images), batch_size):
        yield as_images(normalise(images[first : first + batch_size], *normalisation))


def preview(p: Params, data: datasets.Dataset, epochs: int, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The first training images as they are, (count, 32, 32, 3), and augmented, (epochs, count, 32, 32, 3), in 0..1."""
    images, (mean, std) = data.train_images[:count], data.normalisation
    augment = Augment(images, p, mean, std)
    shown = np.stack([augment.batch(augment.plan(epoch), np.arange(count)) for epoch in range(epochs)])
    return images / 255, np.clip(shown * std + mean, 0, 1)


def as_images(batch: np.ndarray) -> Tensor:
    """(B, 32, 32, 3) in memory, seen as (B, 3, 32, 32) channels_last without a copy."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
