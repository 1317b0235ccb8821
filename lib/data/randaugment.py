"""RandAugment (Cubuk et al., arXiv 1909.13719) as torchvision and as timm have it, and torchvision's ColorJitter.

Both libraries are here reduced to one list of twelve operations with resolved arguments, so that drawing what to do
(vectorised, for all images of an epoch) is apart from doing it (lib/native/augment.c, or `apply` below with Pillow).
"""

import math
from enum import IntEnum

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps
from scipy.special import ndtri

from lib.params import Policy


class Code(IntEnum):
    """The operations. COLOR is saturation; the four before POSTERIZE take a factor, 1 changes nothing."""

    NOTHING, AFFINE, BRIGHTNESS, COLOR, CONTRAST, SHARPNESS = range(6)
    POSTERIZE, SOLARIZE, SOLARIZE_ADD, INVERT, AUTOCONTRAST, EQUALIZE = range(6, 12)  # bits, threshold, increment


class Filter(IntEnum):
    """Interpolation, numbered as in Pillow."""

    NEAREST, BILINEAR, BICUBIC = 0, 2, 3


# One operation on one image: `arg` is the affine matrix (from places of the result to places of the source), or has
# its one argument first. The same layout as in lib/native/augment.c.
OP = np.dtype([("code", np.int32), ("filter", np.int32), ("arg", np.float64, 6)])

# ---- Affine matrices, as Pillow wants them ----


def affine(a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0) -> np.ndarray:
    """Matrices (..., 6) from scalars or arrays."""
    return np.stack(np.broadcast_arrays(a, b, c, d, e, f), axis=-1)


def rotation(degrees, height: int, width: int) -> np.ndarray:
    """Counter-clockwise about the middle; rounded, and in the order of operations, as Image.rotate does."""
    radians = [-math.radians(angle % 360.0) for angle in np.ravel(degrees)]
    cos, sin = np.array([(round(math.cos(r), 15), round(math.sin(r), 15)) for r in radians]).reshape(-1, 2).T
    x, y = width / 2, height / 2
    return affine(cos, sin, cos * -x + sin * -y + x, -sin, cos, -sin * -x + cos * -y + y)


# ---- torchvision: a fixed magnitude, so all that can be drawn is one of 14 operations and a sign ----


def torchvision_choices(magnitude: int, height: int, width: int) -> np.ndarray:
    """The operations (14, 2) of torchvision.transforms.RandAugment, in its order, by sign (plus, minus)."""

    def level(top, of=0.0):
        return float(torch.linspace(of, top, 31)[magnitude])  # float32 steps, as torchvision has them

    def shear(slope):  # by an angle and back, as torchvision takes it
        return math.tan(math.radians(math.degrees(math.atan(slope))))

    choices = np.zeros((14, 2), OP)
    for column, sign in enumerate((1.0, -1.0)):
        across, down = (int(level(150.0 / 331.0 * size) * sign) for size in (width, height))
        angle = np.array([level(30.0) * sign])
        factor = 1.0 + level(0.9) * sign
        choices[:, column] = [
            _op(Code.NOTHING),
            _op(Code.AFFINE, affine(b=shear(level(0.3) * sign))),
            _op(Code.AFFINE, affine(d=shear(level(0.3) * sign))),
            _op(Code.AFFINE, affine(c=-across)),
            _op(Code.AFFINE, affine(f=-down)),
            _op(Code.AFFINE, rotation(angle, height, width)[0]),
            _op(Code.BRIGHTNESS, factor),
            _op(Code.COLOR, factor),
            _op(Code.CONTRAST, factor),
            _op(Code.SHARPNESS, factor),
            _op(Code.POSTERIZE, 8 - round(magnitude / 7.5)),
            _op(Code.SOLARIZE, level(0.0, of=255.0)),
            _op(Code.AUTOCONTRAST),
            _op(Code.EQUALIZE),
        ]
    return choices


def _op(code: Code, arg=0.0):
    """One OP with nearest neighbours."""
    one = np.zeros((), OP)
    one["code"], one["arg"][: np.size(arg)] = code, arg
    return one


# ---- timm: the magnitude, too, is drawn, for each layer of each image ----


def timm_ops(which: np.ndarray, level: np.ndarray, sign: np.ndarray, height: int, width: int) -> np.ndarray:
    """The operations of timm's set rand-...-inc1, in its order, for draws of one shape; `filter` is left to the caller.

    which: 0 to 14; level: magnitude in [0, 10]; sign: 1 or -1 (used where the operation has one).
    """
    ops = np.zeros(which.shape, OP)

    def put(number, code, arg=lambda level, sign: 0.0):
        rows = which == number
        value = np.asarray(arg(level[rows], sign[rows]))
        ops["code"][rows] = code
        if value.ndim == 2:
            ops["arg"][rows] = value
        else:
            ops["arg"][rows, 0] = value

    def factor(level, sign):
        return np.maximum(0.1, 1.0 + sign * (level / 10.0 * 0.9))

    put(0, Code.AUTOCONTRAST)
    put(1, Code.EQUALIZE)
    put(2, Code.INVERT)
    put(3, Code.AFFINE, lambda level, sign: rotation(sign * (level / 10.0 * 30.0), height, width))
    # 0 bits at the largest magnitude: a black image in the Pillow of timm's time, refused since; at least 1 bit here.
    put(4, Code.POSTERIZE, lambda level, sign: np.maximum(1, 4 - np.trunc(level / 10.0 * 4)))
    put(5, Code.SOLARIZE, lambda level, sign: 256 - np.minimum(256, np.trunc(level / 10.0 * 256)))
    put(6, Code.SOLARIZE_ADD, lambda level, sign: np.minimum(128, np.trunc(level / 10.0 * 110)))
    put(7, Code.COLOR, factor)
    put(8, Code.CONTRAST, factor)
    put(9, Code.BRIGHTNESS, factor)
    put(10, Code.SHARPNESS, factor)
    put(11, Code.AFFINE, lambda level, sign: affine(b=sign * (level / 10.0 * 0.3)))
    put(12, Code.AFFINE, lambda level, sign: affine(d=sign * (level / 10.0 * 0.3)))
    put(13, Code.AFFINE, lambda level, sign: affine(c=sign * (level / 10.0 * 0.45) * width))
    put(14, Code.AFFINE, lambda level, sign: affine(f=sign * (level / 10.0 * 0.45) * height))
    return ops


# ---- Drawing ----


def draw(policy: Policy, u: np.ndarray, height: int, width: int) -> np.ndarray:
    """Operations (N, layers) from uniform draws u (N, 5 * layers)."""
    which, sign, gate, spread, interpolation = np.moveaxis(u.reshape(len(u), policy.layers, 5), -1, 0)
    sign = np.where(sign < 0.5, 1.0, -1.0)
    if policy.origin == "torchvision":
        choices = torchvision_choices(policy.magnitude, height, width)
        return choices[np.int64(which * 14), np.int64(sign < 0)]
    level = np.clip(policy.magnitude + policy.spread * ndtri(spread), 0.0, 10.0)
    ops = timm_ops((which * 15).astype(np.int64), level, sign, height, width)
    ops["code"][gate >= policy.share] = Code.NOTHING
    ops["filter"] = either(interpolation)
    return ops


def either(u: np.ndarray) -> np.ndarray:
    """timm's interpolation "random": bilinear or bicubic."""
    return np.where(u < 0.5, Filter.BILINEAR, Filter.BICUBIC)


ORDERS = np.array([(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])


def draw_jitter(strength: float, u: np.ndarray) -> np.ndarray:
    """Operations (N, 3) of ColorJitter(strength, strength, strength), in a random order, from u (N, 4)."""
    low, high = max(0.0, 1.0 - strength), 1.0 + strength
    ops = np.zeros((len(u), 3), OP)
    ops["code"] = np.array([Code.BRIGHTNESS, Code.CONTRAST, Code.COLOR])[ORDERS[np.int64(u[:, 3] * 6)]]
    ops["arg"][:, :, 0] = low + (high - low) * u[:, :3]
    return ops


# ---- Applying with Pillow: the reference of lib/native/augment.c, and what runs where nothing can be compiled ----


def apply(image: Image.Image, op: np.void, fill: tuple[int, int, int]) -> Image.Image:
    """`image` after one OP; geometry brings in the colour `fill`."""
    code, value = op["code"], float(op["arg"][0])
    match code:
        case Code.NOTHING:
            return image
        case Code.AFFINE:
            matrix = op["arg"].tolist()
            return image.transform(image.size, Image.Transform.AFFINE, matrix, int(op["filter"]), fillcolor=fill)
        case Code.BRIGHTNESS:
            return ImageEnhance.Brightness(image).enhance(value)
        case Code.COLOR:
            return ImageEnhance.Color(image).enhance(value)
        case Code.CONTRAST:
            return ImageEnhance.Contrast(image).enhance(value)
        case Code.SHARPNESS:
            return ImageEnhance.Sharpness(image).enhance(value)
        case Code.POSTERIZE:
            return ImageOps.posterize(image, int(value))
        case Code.SOLARIZE:
            return ImageOps.solarize(image, value)  # type: ignore[arg-type]  # as torchvision calls it
        case Code.SOLARIZE_ADD:
            return image.point([min(255, v + int(value)) if v < 128 else v for v in range(256)] * 3)
        case Code.INVERT:
            return ImageOps.invert(image)
        case Code.AUTOCONTRAST:
            return ImageOps.autocontrast(image)
        case Code.EQUALIZE:
            return ImageOps.equalize(image)
    raise ValueError(f"no operation {code}")
