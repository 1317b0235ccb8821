"""What a network looks like inside: against the weights themselves and against a gradient taken by hand."""

import numpy as np
import pytest
import torch

from lib.data.loader import as_images
from lib.explore import look_inside, probabilities, receptive_field
from lib.model import network
from lib.params import Params
from lib.records import CIFAR10_NORMALISATION, MEAN, STD, Normalisation


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), np.uint8)


def made(**values):
    torch.manual_seed(0)
    p = Params(**{"dim": 16, "depth": 5, "patch": 4, "kernel": 3, **values})
    return network(p).eval()


def test_the_weights_are_those_of_the_first_the_middle_and_the_last_block(images):
    model = made()
    inside = look_inside(model, images, CIFAR10_NORMALISATION)
    assert list(inside["blocks"]) == [0, 2, 4]
    for kept, block in zip(inside["depthwise"], (0, 2, 4), strict=True):
        np.testing.assert_allclose(kept, model.blocks[block][0].fn[0].weight[:, 0].detach(), atol=2e-4)
    np.testing.assert_allclose(inside["patch_embedding"], model.stem[0].weight.detach(), atol=2e-4)


@pytest.mark.parametrize("std", STD)
def test_the_receptive_field_is_the_mean_size_of_a_gradient(images, std):
    """Each image by itself, the middle of the feature map picked by hand."""
    model, total = made(), np.zeros((32, 32))
    for image in images:
        x = torch.tensor((image / 255 - MEAN) / STD[std], dtype=torch.float32).permute(2, 0, 1)[None].requires_grad_()
        model.blocks(model.stem(x))[0, :, 4, 4].sum().backward()
        total += x.grad[0].abs().mean(0).numpy()
    np.testing.assert_allclose(
        receptive_field(model, images, Normalisation(MEAN, STD[std])), total / len(images), rtol=1e-4, atol=1e-9
    )


def test_the_receptive_field_ends_where_the_kernels_do(images):
    """One block of k=3 on single pixels sees 3 x 3 of them."""
    field = receptive_field(made(depth=1, patch=1), images, CIFAR10_NORMALISATION)
    assert (field[15:18, 15:18] > 0).all() and np.count_nonzero(field) == 9


def test_a_cnn_and_a_vit_have_a_receptive_field_too(images):
    assert look_inside(made(arch="cnn"), images, CIFAR10_NORMALISATION).keys() == {"receptive_field"}
    vit = look_inside(made(arch="vit", depth=1), images, CIFAR10_NORMALISATION)
    assert vit.keys() == {"receptive_field", "patch_embedding"}
    field = vit["receptive_field"]
    assert field[16:20, 16:20].mean() > 3 * field.mean()  # a token sees itself best, and it is the one in the middle


def test_looking_leaves_the_network_as_it_was(images):
    model = made().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    look_inside(model, images, CIFAR10_NORMALISATION)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_probabilities_are_the_softmax_of_the_logits(images):
    model = made()
    with torch.no_grad():
        normalised = as_images(((images / 255 - MEAN) / STD["pixels"]).astype(np.float32))
        found = torch.tensor(probabilities(model, images, CIFAR10_NORMALISATION))
        torch.testing.assert_close(found, model(normalised).softmax(1))
