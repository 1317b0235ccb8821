"""From CIFAR-10's arrays (see download.py) to batches: the validation split, augmented and plain batches."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lib.data.augment import Augment, Plan, normalise
from lib.data.download import Arrays
from lib.params import Params
from lib.records import CLASSES, MEAN, STD


def split(labels: np.ndarray, val_size: int, train_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the validation images, both with (nearly) the same number from each class.

    A function of its arguments alone, so all runs of a seed share the split. `train_size` 0 takes all that is left.
    """
    random = np.random.default_rng([seed, val_size])
    columns = [random.permutation(np.flatnonzero(labels == c)) for c in range(len(CLASSES))]
    # A row holds one image of each class: any number of leading rows is balanced.
    rows = np.stack(columns, axis=1)  # (N / 10, 10)
    val, train = rows[: val_size // 10].ravel(), rows[val_size // 10 :].ravel()
    return np.sort(train[: train_size or None]), np.sort(val)


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
    return iter(DataLoader(dataset, batch_size=None, sampler=numbers, num_workers=workers, pin_memory=pin))


class _Batches(Dataset):
    """An epoch as a sequence of whole batches, so that a worker process makes a batch in one call."""

    def __init__(self, augment: Augment, labels: np.ndarray, plan: Plan, order: np.ndarray, batch_size: int):
        self.augment, self.labels, self.plan, self.order, self.batch_size = augment, labels, plan, order, batch_size

    def __len__(self) -> int:
        return steps(len(self.order), self.batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rows = self.order[number * self.batch_size : (number + 1) * self.batch_size]
        return as_images(self.augment.batch(self.plan, rows)), torch.from_numpy(self.labels[rows].astype(np.int64))


def plain_batches(images: np.ndarray, batch_size: int, std: str = "pixels") -> Iterator[Tensor]:
    """Images (N, 32, 32, 3), uint8, in order and without augmentation, as batches (B, 3, 32, 32) for evaluation."""
    for first in range(0, len(images), batch_size):
        yield as_images(normalise(images[first : first + batch_size], MEAN, STD[std]))


def preview(p: Params, cifar: Arrays, epochs: int, count: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """The first training images as they are, (count, 32, 32, 3), and augmented, (epochs, count, 32, 32, 3), in 0..1."""
    images = cifar["train_images"][:count]
    std = STD[p.std]
    augment = Augment(images, p, MEAN, std)
    shown = np.stack([augment.batch(augment.plan(epoch), np.arange(count)) for epoch in range(epochs)])
    return images / 255, np.clip(shown * std + MEAN, 0, 1)


def as_images(batch: np.ndarray) -> Tensor:
    """(B, 32, 32, 3) in memory, seen as (B, 3, 32, 32) channels_last without a copy."""
    return torch.from_numpy(batch).permute(0, 3, 1, 2)
