"""ConvMixer against timm's, against the original's flat Sequential, and against the published sizes."""

import pytest
import torch
from timm.models.convmixer import ConvMixer as TimmConvMixer
from torch import nn

from lib import paper
from lib.model import ConvMixer, Residual, count_parameters, forward_macs

SHAPES = [(8, 2, 3, 1), (16, 1, 9, 2), (12, 3, 5, 4), (8, 1, 1, 8), (8, 2, 4, 2), (8, 1, 7, 16), (4, 1, 9, 32)]


def original(dim, depth, kernel, patch):
    """The flat Sequential of the original authors' repository, with its own order and keys."""
    block = [
        lambda: Residual(
            nn.Sequential(nn.Conv2d(dim, dim, kernel, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim))
        ),
        lambda: nn.Conv2d(dim, dim, 1),
        nn.GELU,
        lambda: nn.BatchNorm2d(dim),
    ]
    stem = [nn.Conv2d(3, dim, patch, stride=patch), nn.GELU(), nn.BatchNorm2d(dim)]
    blocks = [nn.Sequential(*(make() for make in block)) for _ in range(depth)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d((1, 1)), nn.Flatten(), nn.Linear(dim, 10))


def perturbed(model):
    """Running statistics and affine weights away from 0 and 1, where a mistake could hide."""
    torch.manual_seed(1)
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.add_(0.2 * torch.rand_like(value))
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_logits_equal_timms_with_the_same_weights(shape, training):
    dim, depth, kernel, patch = shape
    ours = perturbed(ConvMixer(*shape)).train(training)
    theirs = TimmConvMixer(dim=dim, depth=depth, kernel_size=kernel, patch_size=patch, num_classes=10)
    theirs.load_state_dict(ours.state_dict())  # the same keys
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs.train(training)(images))


@pytest.mark.parametrize("shape", SHAPES[:4])
def test_logits_equal_the_originals_with_the_same_weights(shape):
    ours = perturbed(ConvMixer(*shape)).eval()
    theirs = original(*shape).eval()
    # Other keys in the same order.
    theirs.load_state_dict(dict(zip(theirs.state_dict(), ours.state_dict().values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize("setting", paper.PARAMETERS, ids=str)
def test_sizes_are_the_published_ones(setting):
    kernel, patch = setting
    assert count_parameters(ConvMixer(256, 8, kernel, patch)) == paper.PARAMETERS[setting]
    assert forward_macs(256, 8, kernel, patch) / 1e6 == pytest.approx(paper.MEGA_MACS[setting], abs=0.6)


def test_macs_are_those_that_the_layers_do():
    model, counted = ConvMixer(16, 2, 5, 4), 0

    def count(layer, inputs, output):
        nonlocal counted
        counted += layer.weight[0].numel() * output[0].numel()

    for layer in model.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear)):
            layer.register_forward_hook(count)
    model(torch.zeros(1, 3, 32, 32))
    assert counted == forward_macs(16, 2, 5, 4)
