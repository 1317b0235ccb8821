"""ConvMixer against timm's, against the original's flat Sequential, and against the published sizes."""

import pytest
import torch
from timm.models.convmixer import ConvMixer as TimmConvMixer
from torch import nn

from lib.model import CNN, ConvMixer, Residual, count_parameters, forward_macs, network
from lib.params import NETWORKS, Params
from lib.report import published

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


@pytest.mark.parametrize("setting", published.PARAMETERS, ids=str)
def test_sizes_are_the_published_ones(setting):
    kernel, patch = setting
    model = ConvMixer(256, 8, kernel, patch)
    assert count_parameters(model) == published.PARAMETERS[setting]
    assert forward_macs(model) / 1e6 == pytest.approx(published.MEGA_MACS[setting], abs=0.6)


@pytest.mark.parametrize("shape", SHAPES)
def test_macs_are_those_of_the_formula(shape):
    """At each place k^2 h for the depthwise half of a block, h^2 for the pointwise one, 3 p^2 h in the stem."""
    dim, depth, kernel, patch = shape
    places = (32 // patch) ** 2
    expected = places * (3 * patch**2 * dim + depth * (kernel**2 * dim + dim**2)) + dim * 10
    assert forward_macs(ConvMixer(*shape)) == expected


def test_the_cnn_is_the_papers():
    """Sizes as its notebook 01 prints them."""
    model = CNN()
    assert count_parameters(model) == 620_362
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    convolutions = 32**2 * 27 * 32 + 16**2 * 9 * 32 * 64 + 8**2 * 9 * 64 * 128
    assert forward_macs(model) == convolutions + 2048 * 256 + 256 * 10


def test_the_vit_has_the_sizes_of_the_parameters():
    """12 h^2 weights a block, and for each of n tokens as many products, with 2 n h more for the attention."""
    model, (dim, depth, tokens) = network(Params(arch="vit", patch=4, dim=48, depth=3)), (48, 3, 65)
    assert sum(w.numel() for name, w in model.blocks.named_parameters() if w.ndim == 2) == depth * 12 * dim**2
    expected = 64 * 48 * dim + depth * tokens * (12 * dim**2 + 2 * tokens * dim) + dim * 10
    assert forward_macs(model) == expected
    assert model.blocks[0].attn.num_heads == 3


@pytest.mark.parametrize("arch", NETWORKS)
def test_one_constructor_decides(arch):
    p = Params(arch=arch, dim=32, depth=2, patch=4)
    model = network(p).eval()
    assert isinstance(model, ConvMixer) == (arch == "convmixer")
    images = torch.randn(2, 3, 32, 32)
    assert model(images).shape == (2, 10)
    assert model.forward_features(images).shape[:1] == (2,)


def test_each_network_that_arch_may_name_is_another_one():
    assert len({type(network(Params(arch=arch, dim=32, depth=2, patch=4))) for arch in NETWORKS}) == len(NETWORKS)
