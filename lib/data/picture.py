"""Any picture file as the 32 x 32 image that a network takes."""

import os
import warnings

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from lib.params import IMAGE, UserError


class PictureError(UserError):
    """A file that is no picture, or none that can be read; names it."""


def picture(path: str | os.PathLike) -> np.ndarray:
    """The central square of an image file, shrunk (or enlarged) to (32, 32, 3), uint8; PictureError says what is wrong.

    Turned as its EXIF says, transparent places white, of several frames the first, 16 bits a pixel cut to 8.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is still allowed, of a damaged tag
            with Image.open(path) as opened:
                return shrunk(_rgb(ImageOps.exif_transpose(opened)))
    except FileNotFoundError:
        raise PictureError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise PictureError(f"{path}: a folder, give a picture in it") from None
    except UnidentifiedImageError:
        raise PictureError(f"{path}: not a picture that Pillow can read") from None
    except Image.DecompressionBombError as error:
        raise PictureError(f"{path}: too large ({error.args[0].split(',')[0]}); make it smaller first") from None
    except MemoryError:
        raise PictureError(f"{path}: too large for this machine's memory; make it smaller first") from None
    except Exception as error:  # a damaged file makes Pillow's readers fail in a dozen ways
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise PictureError(f"{path}: cannot be read ({reason.splitlines()[0]})") from None


def shrunk(image: Image.Image) -> np.ndarray:
    """An RGB image's central square as (32, 32, 3); lib/report/play/picture.js does the same in a browser."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((IMAGE, IMAGE), Image.Resampling.LANCZOS))


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):  # Pillow itself would clip these at 255
        values = np.asarray(image, np.float64)
        most = 65535 if image.mode != "F" else max(1.0, values.max())
        image = Image.fromarray((values.clip(0, most) * (255 / most) + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
