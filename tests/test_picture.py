"""Any picture becomes 32 x 32 pixels as a person sees it, and what is none is one line."""

import io
import warnings

import numpy as np
import pytest
from PIL import Image

from lib.data.picture import PictureError, picture

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 128, 0), (0, 0, 255), (255, 255, 255)


@pytest.fixture
def saved(tmp_path):
    """Saves an image and returns its path."""

    def save(image, name="picture.png", **how):
        image.save(tmp_path / name, **how)
        return tmp_path / name

    return save


def halves(width=64, height=64, left=RED, right=BLUE, mode="RGB"):
    image = Image.new(mode, (width, height), left)
    image.paste(right, (width // 2, 0, width, height))
    return image


def test_a_cifar_image_stays_as_it_is_to_the_byte(saved):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(picture(saved(Image.fromarray(pixels))), pixels)


def test_the_central_square_is_taken(saved):
    image = Image.new("RGB", (300, 100), GREEN)
    image.paste(RED, (100, 0, 200, 100))
    assert (picture(saved(image)) == RED).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_the_smallest_and_the_narrowest_have_a_square_too(saved, size):
    assert (picture(saved(Image.new("RGB", size, GREEN))) == GREEN).all()


def test_a_phones_picture_is_turned_as_its_exif_says(saved):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture lies on the right
    found = picture(saved(halves(), exif=exif))
    assert tuple(found[2, 16]) == RED and tuple(found[29, 16]) == BLUE


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_places_are_white(saved, mode):
    image = halves(left=(255, 0, 0, 255), right=(0, 0, 0, 0), mode="RGBA").convert(mode)
    how = {"transparency": image.getpixel((63, 0))} if mode == "P" else {}
    found = picture(saved(image, **how))
    assert tuple(found[16, 29]) == WHITE and tuple(found[16, 2]) != WHITE


def test_sixteen_bits_are_cut_to_eight_not_clipped(saved):
    values = np.full((40, 40), 32768, np.uint16)
    assert (picture(saved(Image.fromarray(values))) == 128).all()
    assert (picture(saved(Image.fromarray(values.astype(np.int32)), "picture.tiff")) == 128).all()
    assert (picture(saved(Image.fromarray(np.full((40, 40), 0.5, np.float32)), "picture.tiff")) == 128).all()


def test_printers_colours_palettes_and_two_colours_are_read(saved):
    cmyk = picture(saved(halves().convert("CMYK"), "picture.jpg", quality=100))
    assert np.abs(cmyk[16, 2].astype(int) - RED).max() < 4
    assert tuple(picture(saved(halves().convert("P")))[16, 2]) == RED
    assert set(np.unique(picture(saved(halves(left=WHITE, right=(0, 0, 0)).convert("1")))[16])) >= {0, 255}


def test_of_an_animation_the_first_frame_is_taken(saved):
    frames = [Image.new("RGB", (64, 64), colour) for colour in (RED, BLUE)]
    assert (picture(saved(frames[0], "moving.gif", save_all=True, append_images=frames[1:])) == RED).all()


def test_what_is_no_picture_is_one_line(tmp_path, saved):
    whole = saved(halves(300, 300), "whole.jpg").read_bytes()
    files = {
        "empty.png": b"", "notes.txt": b"a cat", "torn.jpg": whole[: len(whole) // 2], "head.png": b"\x89PNG\r\n\x1a\n",
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in ("missing.jpg", "", *files):
        with pytest.raises(PictureError) as error:
            picture(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)


def test_a_huge_picture_is_one_line_and_a_large_one_no_warning(saved, monkeypatch):
    path = saved(halves(200, 100))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_000)  # twice as many are refused
    with pytest.raises(PictureError, match="too large"):
        picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 12_000)  # more than these are warned of
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert picture(path).shape == (32, 32, 3)


def test_a_picture_can_come_from_memory_too():
    buffer = io.BytesIO()
    halves().save(buffer, "PNG")
    buffer.seek(0)
    assert picture(buffer).shape == (32, 32, 3)
