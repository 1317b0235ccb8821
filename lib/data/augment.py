"""Augmentation in two halves: `plan` draws what happens to every image of an epoch, `batch` does it to some of them.

A plan is a table with a row an image, a pure function of (seed, epoch, image); applying a row draws nothing. So
batches can be made in any order, by any number of workers, again after a crash, and always have the same pixels.
Rows are applied by lib/native/augment.c where there is a C compiler, elsewhere by Pillow, to the same pixels.
"""

import ctypes
import math
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from scipy.special import ndtri

from lib.data import randaugment
from lib.data.draws import Purpose, uniform
from lib.data.randaugment import OP, Filter
from lib.native import compiler
from lib.params import Params, parse_randaugment

PADDING = 4  # pixels by which crops may reach over the border
# Erased rectangles: range of the share of the area, range of height / width.
HOLES = {
    "zero": ((0.02, 0.33), (0.3, 3.3)),  # torchvision's defaults
    "pixel": ((0.02, 1 / 3), (0.3, 1 / 0.3)),  # timm's
}
BANK = 2**20  # places in the normal numbers that "pixel" erasing reads from


# The window of the source that is seen (height, width: the image's own, or a smaller one that is enlarged with
# `filter`), whether it is mirrored, and the erased rectangle (top, left, height, width; height 0 for none) with the
# place in the bank where its noise begins. The same layout as in lib/native/augment.c.
FRAME = np.dtype(
    [(name, np.int32) for name in ("top", "left", "height", "width", "filter", "flip")]
    + [("hole", np.int32, 4), ("noise", np.int32)]
)


class Plan(NamedTuple):
    """What an epoch does to N images: row i is for image i."""

    frames: np.ndarray  # (N,) of FRAME
    ops: np.ndarray  # (N, operations in a row) of lib.data.randaugment.OP


class Augment:
    """Augments `images` (N, H, W, 3), uint8, C-contiguous, which are shared, not copied; or those of `rows` alone.

    With `rows`, image i of a plan and of a batch is images[rows[i]].
    What happens to them is what `p` says, from crop to erasing_mode and in that order. Pixels up to `jitter` are bytes
    as in torchvision's and timm's transforms; erasing follows normalisation. mean, std: of each channel, in [0, 1].
    Can be pickled, forked and used from several threads.
    """

    def __init__(self, images: np.ndarray, p: Params, mean, std, rows: np.ndarray | None = None):
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or not images.flags.c_contiguous:
            raise ValueError(f"images: need C-contiguous uint8 (N, H, W, 3), got {images.dtype} {images.shape}")
        self.images, self.p = images, p
        self.rows = np.arange(len(images)) if rows is None else np.asarray(rows, np.int64)
        self.policy = parse_randaugment(p.randaugment)
        self.table = normalise(np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, 2), mean, std)[:, 0]
        # What shear, rotation and translation bring in: black in torchvision, the mean colour in timm.
        self.fill = tuple(min(255, round(255 * m)) for m in mean) if self.policy.origin == "timm" else (0, 0, 0)
        self.bank = None
        if p.erasing > 0 and p.erasing_mode == "pixel":
            # A hole shows a stretch of this bank from a random place on: independent values within an image; any
            # two holes of CIFAR-10's size have a chance of one in a thousand to share some.
            u = uniform(p.seed, 0, Purpose.NOISE, BANK + images[0].size, 1)[:, 0]
            self.bank = ndtri(u).astype(np.float32)
        _native()  # here, for data workers that are forked to inherit it

    def plan(self, epoch: int) -> Plan:
        """The draws of one epoch for all images: 0.1 s for 50,000 with everything switched on."""
        n, (height, width) = len(self.rows), self.images.shape[1:3]
        p, policy = self.p, self.policy

        def draw(purpose, columns):
            return uniform(p.seed, epoch, purpose, n, columns)

        frames = np.zeros(n, FRAME)
        frames["height"], frames["width"] = height, width
        if p.crop in ("pad", "reflect"):
            places = np.floor(draw(Purpose.CROP, 2) * (2 * PADDING + 1)) - PADDING
            frames["top"], frames["left"] = places.T
        elif p.crop == "resized":
            self._draw_windows(frames, draw(Purpose.CROP, 23))
        if p.flip:
            frames["flip"] = draw(Purpose.FLIP, 1)[:, 0] < 0.5
        if p.erasing > 0:
            u = draw(Purpose.ERASING, 24)
            hole = _rectangles(u, height, width, *HOLES[p.erasing_mode], (height - 1, width - 1))
            frames["hole"] = np.where(u[:, 22] < p.erasing, hole, 0).T
            frames["noise"] = u[:, 23] * BANK

        ops = [np.zeros((n, 0), OP)]
        if policy.layers:
            ops.append(randaugment.draw(policy, draw(Purpose.RANDAUGMENT, 5 * policy.layers), height, width))
        if p.jitter > 0:
            ops.append(randaugment.draw_jitter(p.jitter, draw(Purpose.JITTER, 4)))
        return Plan(frames, np.concatenate(ops, axis=1))

    def _draw_windows(self, frames: np.ndarray, u: np.ndarray) -> None:
        """RandomResizedCrop, from u (N, 23)."""
        height, width = self.images.shape[1:3]
        ratio = self.p.crop_ratio
        drawn = _rectangles(u, height, width, (self.p.crop_scale, 1), (1 / ratio, ratio), (height, width))
        # Ten tries without one that fits: the largest part in the middle that has an allowed shape.
        h, w = min(height, round(width * ratio)), min(width, round(height * ratio))
        middle = (height - h) // 2, (width - w) // 2, h, w
        for name, tried, otherwise in zip(("top", "left", "height", "width"), drawn, middle, strict=True):
            frames[name] = np.where(drawn[2] > 0, tried, otherwise)
        # torchvision's default is bilinear, timm's a random choice.
        frames["filter"] = randaugment.either(u[:, 22]) if self.policy.origin == "timm" else Filter.BILINEAR

    def batch(self, plan: Plan, indices: np.ndarray) -> np.ndarray:
        """The images named by `indices` (B,), as `plan` has them: float32 (B, H, W, 3), C-contiguous, normalised."""
        indices = np.ascontiguousarray(indices, np.int64)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self.rows) == len(plan.frames):
            raise IndexError(f"indices or plan do not fit the {len(self.rows)} images")
        out = np.empty((len(indices), *self.images.shape[1:]), np.float32)
        own, rows = Plan(plan.frames[indices], plan.ops[indices]), self.rows[indices]
        if (library := _native()) is None:
            self._apply_with_pillow(own, rows, out)
        else:
            self._apply_in_c(library, own, rows, out)
        return out

    def _apply_in_c(self, library: ctypes.CDLL, plan: Plan, rows: np.ndarray, out: np.ndarray) -> None:
        def pointer(array):
            return ctypes.c_void_p(None if array is None else array.ctypes.data)

        height, width = self.images.shape[1:3]
        fill = np.array(self.fill, np.uint8)
        failed = library.augment(
            pointer(self.images), height, width, pointer(plan.frames), pointer(plan.ops), plan.ops.shape[1],
            int(self.p.crop == "reflect"), pointer(fill), pointer(self.table), pointer(self.bank),
            pointer(rows), len(rows), pointer(out),
        )  # fmt: skip
        if failed:
            raise MemoryError("lib/native/augment.c found no memory")

    def _apply_with_pillow(self, plan: Plan, rows: np.ndarray, out: np.ndarray) -> None:
        for result, frame, ops, row in zip(out, plan.frames, plan.ops, rows, strict=True):
            image = self._window(self.images[row], frame)
            if frame["flip"]:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
            for op in ops:
                image = randaugment.apply(image, op, self.fill)
            result[:] = self.table[np.asarray(image), np.arange(3)]
            top, left, h, w = frame["hole"]
            noise = 0.0 if self.bank is None else self.bank[frame["noise"] :][: 3 * h * w].reshape(h, w, 3)
            result[top : top + h, left : left + w] = noise

    def _window(self, image: np.ndarray, frame: np.void) -> Image.Image:
        top, left, h, w = (int(frame[name]) for name in ("top", "left", "height", "width"))
        height, width = image.shape[:2]
        if (top, left, h, w) == (0, 0, height, width):
            return Image.fromarray(image)
        if (h, w) == (height, width):
            mode: Literal["reflect", "constant"] = "reflect" if self.p.crop == "reflect" else "constant"
            padded = np.pad(image, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode)
            top, left = top + PADDING, left + PADDING
            return Image.fromarray(padded[top : top + h, left : left + w])
        part = Image.fromarray(image[top : top + h, left : left + w])
        return part.resize((width, height), int(frame["filter"]))


def _native() -> ctypes.CDLL | None:
    """The same in C. Without fused multiply-add, which rounds once where Pillow rounds twice."""
    return compiler.load("augment", "-ffp-contract=off")


def normalise(images: np.ndarray, mean, std) -> np.ndarray:
    """Bytes (..., W, 3) to float32 (x / 255 - mean) / std, as torchvision's ToTensor and Normalize round it."""
    # A row of pixels at a time: NumPy is slow along an axis of three.
    rows = images.reshape(*images.shape[:-2], -1)
    mean, std = (np.tile(np.asarray(values, np.float32), images.shape[-2]) for values in (mean, std))
    out = rows.astype(np.float32)
    out /= np.float32(255)
    out -= mean
    out /= std
    return out.reshape(images.shape)


def _rectangles(u: np.ndarray, height: int, width: int, area, aspect, largest) -> tuple[np.ndarray, ...]:
    """(top, left, h, w), each (N,), from draws u (N, 22 or more): the first of ten tries that fits into `largest`.

    area: range of the share of the image, uniform; aspect: range of h / w, uniform in its logarithm. A row where no
    try fits is all 0.
    """
    tries = u[:, :20].reshape(-1, 10, 2)
    pixels = (area[0] + (area[1] - area[0]) * tries[..., 0]) * (height * width)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    ratio = np.exp(low + (high - low) * tries[..., 1])
    h, w = np.rint(np.sqrt(pixels * ratio)), np.rint(np.sqrt(pixels / ratio))  # (N, 10)
    fits = (h >= 1) & (h <= largest[0]) & (w >= 1) & (w <= largest[1])
    first = np.arange(len(u)), fits.argmax(1)
    h, w = np.where(fits[first], h[first], 0), np.where(fits[first], w[first], 0)  # (N,)
    top, left = np.floor(u[:, 20] * (height - h + 1)), np.floor(u[:, 21] * (width - w + 1))
    return np.where(h > 0, top, 0), np.where(h > 0, left, 0), h, w
