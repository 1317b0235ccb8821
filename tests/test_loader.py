"""The split and the batches."""

import numpy as np
import pytest
import torch

from lib.data import loader
from lib.data.augment import Augment
from lib.data.datasets import split
from lib.data.draws import order
from lib.params import Params
from lib.records import MEAN, STD, Normalisation


@pytest.fixture
def labels(cifar):
    return cifar["train_labels"]


def test_the_split_is_stratified_disjoint_and_whole(labels):
    train, val = split(labels, 5000, 0, seed=3)
    assert np.bincount(labels[val]).tolist() == [500] * 10
    assert np.bincount(labels[train]).tolist() == [4500] * 10
    assert sorted(np.concatenate([train, val])) == list(range(50_000))


def test_no_validation_split_trains_on_all(labels):
    train, val = split(labels, 0, 0, seed=0)
    assert len(val) == 0 and train.tolist() == list(range(50_000))


def test_the_split_belongs_to_the_seed(labels):
    first, again, other = (split(labels, 1000, 2000, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_a_smaller_training_set_is_balanced_part_of_a_larger_one_and_leaves_the_validation_split(labels):
    small, val = split(labels, 1000, 500, seed=0)
    large, same_val = split(labels, 1000, 5000, seed=0)
    assert np.bincount(labels[small]).tolist() == [50] * 10
    assert set(small) < set(large) and np.array_equal(val, same_val)


def epoch_of(cifar, workers, first=0, batch_size=48, n=200):
    images, labels = cifar["train_images"][:n], cifar["train_labels"][:n]
    augment = Augment(images, Params(erasing=0.5), MEAN, STD["pixels"])
    return list(loader.batches(augment, labels, augment.plan(1), order(0, 1, n), batch_size, first, workers))


def test_batches_do_not_depend_on_workers_or_on_where_they_start(cifar):
    whole = epoch_of(cifar, workers=0)
    assert [len(labels) for _, labels in whole] == [48, 48, 48, 48, 8]
    for other in (
        epoch_of(cifar, workers=2),
        whole[:2] + epoch_of(cifar, 0, first=2),
        whole[:3] + epoch_of(cifar, 2, 3),
    ):
        for (x, y), (x2, y2) in zip(whole, other, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)


def test_batches_are_what_the_network_wants(cifar):
    images, labels = epoch_of(cifar, workers=0)[0]
    assert images.shape == (48, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.dtype == torch.int64
    pixel = cifar["test_images"][3, 5, 7].astype(np.float64) / 255
    for std in STD.values():
        plain = next(loader.plain_batches(cifar["test_images"], 100, Normalisation(MEAN, std)))
        assert plain.shape == (100, 3, 32, 32)
        np.testing.assert_allclose(plain[3, :, 5, 7], (pixel - MEAN) / std, rtol=1e-5)
