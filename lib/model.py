"""ConvMixer (Trockman & Kolter, arXiv 2201.09792) on one screen, in its words: dim h, depth d, kernel k, patch p.

Parameter names follow timm's `ConvMixer`, so weights move between the two without renaming.
"""

from torch import Tensor, nn


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

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)  # (B, h, n/p, n/p)
        x = self.blocks(x)  # (B, h, n/p, n/p)
        return self.head(x.mean((2, 3)))  # (B, h) -> (B, classes)


def count_parameters(model: nn.Module) -> int:
    """Number of trained values."""
    return sum(p.numel() for p in model.parameters())


def forward_macs(dim: int, depth: int, kernel: int, patch: int, image: int = 32, classes: int = 10, channels: int = 3):
    """Multiply-accumulates of the convolutions and the head for one image, forward."""
    places = (image // patch) ** 2
    stem = places * channels * patch**2 * dim
    block = places * (kernel**2 * dim + dim**2)
    return stem + depth * block + dim * classes
