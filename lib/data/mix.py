"""Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899) of whole batches, as in timm."""

import math

import numpy as np
import torch
from torch import Tensor

from lib.data.draws import Purpose, philox
from lib.params import Params


def mix(images: Tensor, labels: Tensor, p: Params, epoch: int, batch: int, classes: int = 10) -> tuple[Tensor, Tensor]:
    """The batch mixed (or not) as its draws say, and its soft targets: timm's Mixup in batch mode.

    images (B, C, H, W), labels (B,) of int64, on any device; `batch` is the batch's number in its epoch. Gives images
    (those given where nothing is mixed; they are never written to) and float32 targets (B, classes), smoothed. One
    strength for the whole batch; partners are the first image and the last, the second and the last but one, and in
    an odd batch the middle one and itself.
    """
    lam, box = draw(p, epoch, batch, *images.shape[-2:])
    if box is not None:
        rows, columns = box
        mixed = images.clone()
        mixed[..., rows, columns] = images.flip(0)[..., rows, columns]
    else:
        mixed = images if lam == 1 else images.mul(lam).add_(images.flip(0).mul_(1 - lam))
    off = p.label_smoothing / classes
    targets = torch.full((len(labels), classes), off, device=images.device)
    targets.scatter_(1, labels[:, None], 1 - p.label_smoothing + off)
    return mixed, targets if lam == 1 else targets * lam + targets.flip(0) * (1 - lam)


def draw(p: Params, epoch: int, batch: int, height: int, width: int) -> tuple[float, tuple[slice, slice] | None]:
    """The share that each image keeps, and for CutMix the (rows, columns) that come from its partner."""
    random = np.random.Generator(philox(p.seed, epoch, Purpose.MIX, batch))
    gate, switch, y, x = random.random(4)
    if gate >= p.mix_prob or p.mixup == p.cutmix == 0:
        return 1.0, None
    cut = p.cutmix > 0 and (p.mixup == 0 or switch < 0.5)
    alpha = p.cutmix if cut else p.mixup
    lam = float(random.beta(alpha, alpha))
    if not cut:
        return lam, None

    # A box of the image's shape around a random pixel, less what lies outside: lam is what it really leaves.
    def span(place: float, size: int) -> slice:
        side, at = int(size * math.sqrt(1 - lam)), int(place * size)
        return slice(max(0, at - side // 2), min(size, at + (side + 1) // 2))

    rows, columns = span(y, height), span(x, width)
    area = (rows.stop - rows.start) * (columns.stop - columns.start)
    return 1 - area / (height * width), (rows, columns)
