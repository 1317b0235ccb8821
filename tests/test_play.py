"""How play.html is built: which networks, how many fit, and that the committed page is what the records give."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from lib import records
from lib.params import Params, UserError
from lib.report.play import build

PAGE = records.PUBLISHED / build.PAGE
FOUND = records.with_weights(records.PUBLISHED)


@pytest.fixture(scope="module")
def images():
    return np.zeros((10, 32, 32, 3), np.uint8)


def runs(page: str) -> list[str]:
    return [part.split('"')[0] for part in page.split('data-run="')[1:]]


def test_the_committed_page_is_what_the_records_weights_and_images_give():
    assert PAGE.read_text(encoding="utf-8") == build.build(records.PUBLISHED, build.test_images())


def test_the_page_is_one_small_file():
    assert PAGE.stat().st_size < build.LIMIT and len(runs(PAGE.read_text(encoding="utf-8"))) > 1


def test_as_many_networks_as_fit_and_a_smaller_one_after_one_that_does_not(images):
    whole = build.build(records.PUBLISHED, images)
    for limit in (len(whole.encode()) - 1, 200_000):
        page = build.build(records.PUBLISHED, images, limit)
        assert len(page.encode()) <= limit and runs(page) and runs(page) != runs(whole)
    with pytest.raises(UserError, match="no published ConvMixer"):
        build.build(records.PUBLISHED, images, 50_000)


def made(study: str, val: float, **values) -> tuple[str, dict]:
    params = vars(Params(study=study, **values))
    return f"{study}-{val}", {"params": params, "selected_epoch": 1, "history": [{"val_acc": val}]}


def test_preferred_studies_come_first_and_of_a_setting_the_best():
    found = [
        made("another", 99, kernel=3), made("quick", 50), made("quick", 52), made("quick", 60, patch=2),
        made("laptop", 70, patch=2), made("laptop", 71, kernel=3), made("laptop", 90, arch="vit", patch=4),
    ]  # fmt: skip
    assert [name for name, _ in build.candidates(found)] == [
        "laptop-71", "laptop-70", "quick-52", "quick-60", "another-99",
    ]  # fmt: skip


def test_weights_are_rounded_not_cut_and_all_are_there():
    folder, record = FOUND[0]
    half, depth = build.half(folder), record["params"]["depth"]
    assert sorted(build.names(depth)) == sorted(half)
    given = load_file(folder / records.WEIGHTS)
    for name, value in half.items():
        np.testing.assert_array_equal(value, given[name].astype(np.float16))
        assert value.dtype == np.float16


def test_a_study_is_linked_where_it_has_a_page(tmp_path):
    networks = [{"study": study, "name": "ConvMixer-32/4, k=9", "run": "r", "kernel": 9, "patch": 1, "test": 50.0}
                for study in ("quick", "laptop")]  # fmt: skip
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "index.html").touch()
    text = build.chooser(networks, tmp_path)
    assert 'ConvMixer-32/4 of <a href="quick/index.html">quick</a>' in text and "ConvMixer-32/4 of laptop" in text


def test_images_are_the_first_of_each_class(cifar):
    for number, image in enumerate(build.test_images()):
        first = np.flatnonzero(cifar["test_labels"] == number)[0]
        np.testing.assert_array_equal(image, cifar["test_images"][first])


def test_without_images_it_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("CONVMIXER_DATA", str(tmp_path))
    with pytest.raises(UserError, match="make data"):
        build.test_images()
