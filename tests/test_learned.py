"""What networks look like inside: shares of a field by hand, every drawing from made-up arrays and from none."""

import numpy as np
import pytest

import made
from lib import records
from lib.report import learned


def test_theoretical_sizes_are_the_papers():
    """Depth 8 at p=1: 17, 33, 49 and 65 pixels for k=3, 5, 7 and 9."""
    sizes = [learned.theoretical({"patch": 1, "depth": 8, "kernel": k}) for k in (3, 5, 7, 9)]
    assert sizes == [17, 33, 49, 65]
    assert learned.theoretical({"patch": 4, "depth": 2, "kernel": 3}) == 20


def test_shares_of_a_field_by_hand():
    field = np.zeros((32, 32))
    field[12:20, 12:20] = 1  # the 8 x 8 pixels in the middle
    assert learned.inside(field, 8) == 1 and learned.inside(field, 4) == pytest.approx(16 / 64)
    assert learned.half_of(field) == 6 and learned.half_of(field, 0.99) == 8  # 36 of 64
    assert learned.half_of(np.ones((32, 32)), 1.0) == 32


def test_a_mosaic_keeps_every_tile():
    tiles = np.arange(5 * 4).reshape(5, 2, 2)
    sheet = learned.mosaic(tiles, columns=3, fill=-1)
    assert sheet.shape == (5, 8)
    assert (sheet[:2, :2] == tiles[0]).all() and (sheet[3:, 3:5] == tiles[4]).all() and (sheet[2] == -1).all()


def test_each_network_is_drawn(home):
    study = made.study()
    made.fill(study)
    runs = records.load(study)
    by_kernel, by_patch = learned.networks(runs, "kernel"), learned.networks(runs, "patch")
    assert list(by_kernel) == ["k=3", "k=5", "k=7", "k=9"] and list(by_patch) == ["p=1", "p=2", "p=4"]
    assert len(learned.patch_embeddings(by_patch).axes) == 3
    assert len(learned.kernels(by_kernel).axes) == 4 * 3
    assert "k=9: half of the gradient within" in learned.receptive_fields(by_kernel).get_label()
    reach = learned.reach(by_kernel)
    assert reach["half"].is_monotonic_increasing and (reach["most"] >= reach["half"]).all()
    (said,) = learned.outline(by_kernel)
    assert "for k=3" in said and "for k=9" in said


def test_a_network_without_kernels_has_a_field_alone(home):
    study = made.study(settings=["cnn"])
    made.fill(study)
    arrays = records.read_arrays(records.load(study)["record"][0])
    assert learned.kernels({"cnn": arrays}) is None and learned.patch_embeddings({"cnn": arrays}) is None


def test_nothing_is_drawn_of_nothing(home):
    found = learned.networks(records.load(made.study()), "kernel")
    assert found == {} and learned.kernels(found) is None and learned.receptive_fields(found) is None
    assert learned.reach(found).empty and learned.outline(found) == []


def test_one_run_is_drawn_by_itself(home):
    study = made.study(settings=["kernel-5"])
    made.fill(study)
    record = records.load(study)["record"][0]
    found = learned.one(record, records.read_arrays(record))
    assert list(found) == ["ConvMixer-64/4, k=5, p=1"] and list(learned.reach(found)["network"]) == list(found)
    for draw in (learned.kernels, learned.patch_embeddings, learned.receptive_fields):
        assert "ConvMixer-64/4, k=5, p=1" in draw(found).get_label()
