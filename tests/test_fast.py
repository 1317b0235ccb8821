"""The fast layers against the plain ones in float64: outputs, every gradient, running statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from lib import fast
from lib.model import ConvMixer

pytestmark = pytest.mark.skipif(fast.library() is None, reason="no C compiler here")

# Relative error (norm of the difference over norm) in float32. In bfloat16 the measure is what autocast has on the
# plain model: some gradients are small differences of large numbers, in which eight bits leave little for anyone.
OUTPUT, GRADIENT = 2e-6, 1e-4

# dim, depth, kernel, patch, image size, batch
SHAPES = [
    (32, 2, 3, 1, 8, 4),
    (48, 2, 5, 1, 12, 2),
    (20, 2, 7, 1, 9, 3),
    (16, 1, 9, 2, 32, 3),
    (96, 1, 9, 4, 32, 1),
    (7, 2, 11, 1, 10, 2),
    (33, 1, 1, 2, 14, 5),
]


def random_model(*size: int) -> ConvMixer:
    """A ConvMixer whose every parameter differs from its initial value (a BatchNorm's weight is not 1)."""
    torch.manual_seed(sum(size))
    model = ConvMixer(*size)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def accelerated(model: ConvMixer, dtype: torch.dtype = torch.float32) -> ConvMixer:
    model = copy.deepcopy(model)
    assert fast.accelerate(model, dtype) is None
    return model


def forward_backward(model: nn.Module, x: Tensor, to_logits: Tensor, to_features: Tensor) -> dict[str, Tensor]:
    """Logits, features, gradients of images and parameters, and buffers, after one step forward and back."""
    x = x.clone().requires_grad_()
    features = []
    with model.blocks.register_forward_hook(lambda *call: features.append(call[-1])):
        logits = model(x)
    torch.autograd.backward([logits, *features], [to_logits.to(logits.dtype), to_features.to(features[0].dtype)])
    gradients = {f"d {name}": parameter.grad for name, parameter in model.named_parameters()}
    outputs = {"logits": logits.detach(), "features": features[0].detach(), "d images": x.grad}
    return {**outputs, **gradients, **dict(model.named_buffers())}


def three_ways(model: ConvMixer, x: Tensor, dtype: torch.dtype) -> tuple[dict, dict, dict]:
    """`forward_backward` of the fast layers, of the plain ones (in autocast for bfloat16), and in float64."""
    n = x.shape[-1] // model.stem[0].stride[0]
    to_logits = torch.randn(len(x), model.head.out_features)
    to_features = torch.randn(len(x), model.head.in_features, n, n)
    ours = forward_backward(accelerated(model, dtype), x, to_logits, to_features)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        plain = forward_backward(copy.deepcopy(model), x, to_logits, to_features)
    exact = forward_backward(copy.deepcopy(model).double(), x.double(), to_logits, to_features)
    return ours, plain, exact


def error(ours: Tensor, exact: Tensor) -> float:
    return ((ours.double() - exact.double()).norm() / exact.double().norm().clamp_min(1e-30)).item()


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_float32_matches_float64(size):
    """Outputs, every gradient, running statistics."""
    *architecture, n, batch = size
    ours, _, exact = three_ways(random_model(*architecture), torch.randn(batch, 3, n, n), torch.float32)
    for name, value in ours.items():
        assert error(value, exact[name]) < (GRADIENT if name.startswith("d ") else OUTPUT), name


@pytest.mark.parametrize("size", SHAPES, ids=str)
def test_bfloat16_is_no_worse_than_autocast(size):
    """Nearer to float64 on the whole (geometric mean over tensors), and nowhere far behind."""
    *architecture, n, batch = size
    ours, plain, exact = three_ways(random_model(*architecture), torch.randn(batch, 3, n, n), torch.bfloat16)
    assert ours["logits"].dtype == torch.float32
    assert ours["features"].dtype == torch.bfloat16
    errors = {name: (error(value, exact[name]), error(plain[name], exact[name])) for name, value in ours.items()}
    ratios = torch.tensor([(fast + 1e-6) / (auto + 1e-6) for fast, auto in errors.values()])
    assert ratios.log().mean().exp() < 1
    assert all(fast < 3 * auto + 5e-3 for fast, auto in errors.values()), errors
