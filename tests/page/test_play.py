"""play.html: what it computes is PyTorch's, and everything on it can be reached by hand, key and file."""

import json
import math

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from lib import records
from lib.data.augment import normalise
from lib.data.loader import as_images
from lib.data.picture import picture
from lib.explore import trained_in
from lib.model import ConvMixer
from lib.params import Params
from lib.records import CLASSES, MEAN, PUBLISHED, STD
from lib.report.play import build

PAGE = PUBLISHED / build.PAGE


@pytest.fixture
def page(browser):
    """The page as it is when it has just been opened."""
    browser.open(PAGE)
    yield browser
    assert not browser.problems


@pytest.fixture(scope="module")
def shown():
    """Folder and record of each network on the page, in its order."""
    found = {(record["study"], record["run"]): (folder, record) for folder, record in records.with_weights(PUBLISHED)}
    text = PAGE.read_text(encoding="utf-8").split('id="networks" type="application/json">')[1].split("</script>")[0]
    return [found[network["study"], network["run"]] for network in json.loads(text)]


def rounded(model: ConvMixer, folder) -> ConvMixer:
    """The same network with its weights rounded as the page has them."""
    half = {name: torch.from_numpy(value.astype(np.float32)) for name, value in build.half(folder).items()}
    assert not model.load_state_dict(half, strict=False).unexpected_keys
    return model.eval()


def inputs(images: np.ndarray, std: str = "pixels") -> torch.Tensor:
    return as_images(normalise(images, MEAN, STD[std]))


LOGITS = "[...document.querySelectorAll('#classes button')].map((button) => Number(button.dataset.logit))"


@torch.inference_mode()
def test_logits_are_pytorchs_for_every_network_and_picture(page, shown):
    images = build.test_images()
    for number, (folder, record) in enumerate(shown):
        page.run(f"document.querySelectorAll('[name=network]')[{number}].click()")
        model = trained_in(folder)[1]
        x = inputs(images, record["params"]["std"])
        full, half = model(x), rounded(model, folder)(x)
        assert (full - half).abs().max() < 0.02  # the page says so
        times = []
        for i in range(len(CLASSES)):
            page.run(f"document.querySelectorAll('#pictures button')[{i}].click()")
            np.testing.assert_allclose(page.run(LOGITS), half[i], atol=1e-3, rtol=0)
            times.append(page.run("now.milliseconds"))
        assert min(times) < 1000, f"{record['run']}: {min(times):.0f} ms a picture"  # others may use the processor


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@torch.inference_mode()
@pytest.mark.parametrize("values", [(6, 2, 4, 8), (5, 1, 1, 2), (8, 2, 7, 4)], ids=["even kernel", "no kernel", "wide"])
def test_any_network_and_every_map_is_pytorchs(page, tmp_path, values):
    dim, depth, kernel, patch = values
    torch.manual_seed(0)
    model = ConvMixer(*values)
    for name, buffer in model.named_buffers():
        if name.endswith(("mean", "var")):
            buffer.uniform_(0.1, 2)
    for weight in model.parameters():
        weight.uniform_(-0.7, 1)
    safetensors.torch.save_file(model.state_dict(), tmp_path / records.WEIGHTS)
    params = Params(dim=dim, depth=depth, kernel=kernel, patch=patch, std="images")
    record = {"params": vars(params), "run": "made", "test_acc": 10.0, "selected_epoch": 1, "history": [{}]}
    image = np.random.default_rng(0).integers(0, 256, (1, 32, 32, 3), np.uint8)
    page.run(f"made = unpack({json.dumps(build.network_of(tmp_path, record))}); image = {image.ravel().tolist()}; 0")
    found = page.run("(({logits, maps}) => ({logits, maps: maps.map(({out}) => [...out])}))(forward(made, image))")
    rounded(model, tmp_path)
    x = model.stem(inputs(image, "images"))
    expected = [x, *(x := block(x) for block in model.blocks)]
    np.testing.assert_allclose(found["logits"], model.head(x.mean((2, 3)))[0], atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(found["maps"], expected, strict=True):
        np.testing.assert_allclose(ours, theirs.flatten(), atol=1e-4, rtol=1e-4)
    evidence = page.run("[...evidence(made, forward(made, image), 3)]")
    assert np.mean(evidence) + model.head.bias[3] == pytest.approx(found["logits"][3], abs=1e-4)


def test_erfc_is_right_far_out_too(page):
    points = np.linspace(-6, 9, 301)
    found = page.run(f"{points.tolist()}.map(erfc)")
    np.testing.assert_allclose(found, [math.erfc(x) for x in points], rtol=1.3e-7)


IMAGE_OF_PAGE = "[...now.image]"


@pytest.mark.parametrize("size", [(301, 200), (32, 32), (7, 90), (1, 1), (640, 1000)], ids=str)
def test_a_picture_is_cut_and_shrunk_as_pillow_does_it(page, tmp_path, size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size[::-1], 4), np.uint8)
    pixels[..., 3] = 255 * (pixels[..., 3] > 99)
    path = tmp_path / "own.png"
    Image.fromarray(pixels).save(path)
    page.give_file("#file", path)
    page.until("document.getElementById('own')")
    found = np.reshape(page.run(IMAGE_OF_PAGE), (32, 32, 3))
    assert np.abs(found - picture(path).astype(int)).max() <= 1


def test_a_phones_large_picture_is_turned_and_nearly_pillows(page, tmp_path):
    y, x = np.indices((1500, 2600)) / 400
    colours = 127.5 + 127.5 * np.stack([np.sin(3 * x), np.sin(5 * y), np.cos(2 * x + y)], -1)
    exif, path = Image.Exif(), tmp_path / "IMG 1.jpg"
    exif[0x0112] = 6
    Image.fromarray(colours.astype(np.uint8)).save(path, exif=exif, quality=95)
    page.give_file("#file", path)
    page.until("document.getElementById('own')")
    found = np.reshape(page.run(IMAGE_OF_PAGE), (32, 32, 3))
    assert np.abs(found - picture(path).astype(int)).max() <= 8


def test_a_file_can_be_dropped_and_what_is_no_picture_is_said(page):
    page.run(
        "drop = (file) => {const data = new DataTransfer(); data.items.add(file);"
        "document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}))}; 0"
    )
    before = page.run(LOGITS)
    page.run("drop(new File(['a cat'], 'cat.txt'))")
    page.until("!document.getElementById('problem').hidden")
    assert "cat.txt is not a picture" in page.run("document.getElementById('problem').textContent")
    assert page.run(LOGITS) == before
    page.run("new Promise((done) => picked.toBlob((blob) => done(drop(new File([blob], 'a.png')))))".replace(
        "picked", "document.querySelector('#pictures button:nth-child(4) canvas')"))  # fmt: skip
    page.until("document.getElementById('own')")
    assert page.run(IMAGE_OF_PAGE) == build.test_images()[3].ravel().tolist()
    assert page.run("document.getElementById('problem').hidden")


READING = "document.getElementById('reading').textContent"
FOCUS = "document.activeElement"


def test_pointing_at_a_kernel_shows_its_map(page):
    page.point("#channels > :nth-child(12)")
    assert page.run(READING).startswith("Channel 12 at")
    page.point("#picture", across=0.01, down=0.99)
    place = page.run("[now.row, now.column, now.network.side]")
    assert place[:2] == [place[2] - 1, 0]
    expected = page.run("now.result.maps[1].seen[(11 * now.network.side + now.row) * now.network.side]")
    assert f"{expected:.2f}".replace("-", "−") in page.run(READING)


def test_everything_is_reached_from_the_keyboard(page):
    """Tab goes to each thing once; arrows move inside it."""
    stops = []
    for _ in range(60):
        page.press("Tab")
        stop = page.run(f"{FOCUS}.id || {FOCUS}.name || {FOCUS}.parentElement.id || {FOCUS}.tagName")
        if stop == "BODY":
            break
        stops.append(stop)
        if stop == "network":
            page.press("ArrowRight")
            assert page.run(f"{FOCUS}.checked && Number({FOCUS}.value) === packed.indexOf(packed.find((one) => "
                            "one.run === now.network.run && one.study === now.network.study))")  # fmt: skip
        if stop == "picture":
            before = page.run("[now.row, now.column]")
            page.press("ArrowDown")
            page.press("ArrowRight")
            assert page.run("[now.row, now.column]") == [place + 1 for place in before]
        if stop == "layer":
            page.press("ArrowRight")
            assert page.run("now.layer") == 2
        if stop == "channels":
            page.press("ArrowRight")
            page.press("ArrowDown")
            assert page.run("now.channel") > 1 and page.run(f"{FOCUS}.getAttribute('aria-selected')") == "true"
            page.press("End")
            assert page.run("now.channel === now.network.dim - 1")
    assert list(dict.fromkeys(stops)) == ["picture", "pictures", "file", "A", "network", "classes", "layer", "channels"]
    assert stops.count("pictures") == stops.count("classes") == 10 and stops.count("channels") == 1


def test_a_class_shows_its_evidence_while_it_is_focused_and_a_press_keeps_it(page):
    page.run("document.querySelector('#classes button').focus()")
    assert page.run("now.shown") == 0
    page.press("Enter")
    page.press("Tab")
    assert page.run("now.shown") == 1
    page.run(f"{FOCUS}.blur()")
    assert page.run("[now.shown, document.querySelector('#classes button').ariaPressed]") == [0, "true"]
