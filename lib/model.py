"""ConvMixer (Trockman & Kolter, arXiv 2201.09792) on one screen, in its words: dim h, depth d, kernel k, patch p.

Parameter names follow timm's `ConvMixer`, so weights move between the two without renaming. Below it stand the two
networks that it is compared with.
"""

import copy
import warnings

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lib.params import IMAGE, Params


class Residual(nn.Module):
    """Adds its input to what `fn` makes of it."""

    def __init__(self, fn: nn.Module):
        super().__init__()
        self.fn = fn

    def forward(self, x: Tensor) -> Tensor:
        return self.fn(x) + x


class ConvMixer(nn.Module):
    """Patch embedding, `depth` mixing blocks at one resolution, average pooling, linear head (Section II-A).

    Takes images (B, channels, n, n) with n divisible by `patch`; gives logits (B, classes).
    Any kernel >= 1 works: an odd one pads the same on both sides, an even one has its extra row below and right.
    """

    def __init__(self, dim: int, depth: int, kernel: int, patch: int, classes: int = 10, channels: int = 3):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, dim, patch, stride=patch), nn.GELU(), nn.BatchNorm2d(dim))
        self.blocks = nn.Sequential(*(self.block(dim, kernel) for _ in range(depth)))
        self.head = nn.Linear(dim, classes)

    @staticmethod
    def block(dim: int, kernel: int) -> nn.Sequential:
        """Depthwise convolution mixes places within a channel, pointwise convolution mixes channels within a place."""
        return nn.Sequential(
            Residual(
                nn.Sequential(nn.Conv2d(dim, dim, kernel, groups=dim, padding="same"), nn.GELU(), nn.BatchNorm2d(dim))
            ),
            nn.Conv2d(dim, dim, 1),
            nn.GELU(),
            nn.BatchNorm2d(dim),
        )

    def forward_features(self, x: Tensor) -> Tensor:
        """What the last block gives, (B, h, n/p, n/p); the name is timm's."""
        x = self.stem(x)  # (B, h, n/p, n/p)
        return self.blocks(x)  # (B, h, n/p, n/p)

    def forward(self, x: Tensor) -> Tensor:
        x = self.forward_features(x).mean((2, 3))  # (B, h)
        return self.head(x)  # (B, classes)


class CNN(nn.Sequential):
    """The three-layer network that the paper began with, as its notebook 01 has it: images (B, 3, 32, 32) to logits."""

    def __init__(self, classes: int = 10):
        layers = []
        for inputs, outputs in ((3, 32), (32, 64), (64, 128)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        head = nn.Sequential(nn.Flatten(), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, classes))
        super().__init__(nn.Sequential(*layers), head)

    def forward_features(self, x: Tensor) -> Tensor:
        """What the last pooling gives, (B, 128, 4, 4)."""
        return self[0](x)


def network(p: Params, classes: int = 10) -> nn.Module:
    """The network of a run with random weights: images (B, 3, 32, 32) to logits (B, classes)."""
    if p.arch == "convmixer":
        # Of an even kernel PyTorch warns, several times, that its padding may cost a copy: it trains all the same.
        warnings.filterwarnings("ignore", "Using padding='same' with even kernel lengths")
        return ConvMixer(p.dim, p.depth, p.kernel, p.patch, classes)
    if p.arch == "cnn":
        return CNN(classes)
    from timm.models.vision_transformer import VisionTransformer  # timm takes seconds to import

    return VisionTransformer(
        img_size=IMAGE, patch_size=p.patch, embed_dim=p.dim, depth=p.depth, num_heads=p.dim // 16, num_classes=classes
    )


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())


def forward_macs(model: nn.Module) -> int:
    """Multiply-accumulates of products, convolutions and attention for one image, forward, as torch counts them."""
    shapes_only = copy.deepcopy(model).to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        shapes_only(torch.empty(1, 3, IMAGE, IMAGE, device="meta"))
    return counter.get_total_flops() // 2
