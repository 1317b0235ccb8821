"""What networks look like inside: shares of a field by hand, every drawing from made-up arrays and from none."""

import numpy as np
import pytest
import torch

import made
from lib import records
from lib.explore import receptive_field
from lib.model import CNN, ConvMixer, network
from lib.params import Params
from lib.report import learned, run_figures


def test_theoretical_sizes_are_the_papers():
    """Depth 8 at p=1: 17, 33, 49 and 65 pixels for k=3, 5, 7 and 9."""
    sizes = [learned.theoretical({"patch": 1, "depth": 8, "kernel": k}) for k in (3, 5, 7, 9)]
    assert sizes == [17, 33, 49, 65]
    assert learned.theoretical({"patch": 4, "depth": 2, "kernel": 3}) == 20


def test_shares_of_a_field_by_hand():
    field = np.zeros((32, 32))
    field[12:20, 12:20] = 1  # 8 x 8 pixels, with 15.5 in their middle
    assert learned.inside(field, 8, 15.5) == 1 and learned.inside(field, 4, 15.5) == pytest.approx(16 / 64)
    assert learned.inside(field, 5, 15.5) == pytest.approx(25 / 64)  # half a pixel on each side
    assert learned.side_holding(field, 15.5, 0.5) == 6 and learned.side_holding(field, 15.5, 0.99) == 8  # 36 of 64
    assert learned.side_holding(np.ones((32, 32)), 15.5, 1.0) == 32
    assert learned.side_holding(field, 16, 1.0) == 9  # one side is further away


@pytest.mark.parametrize("kernel, patch, depth", [(3, 1, 2), (5, 1, 3), (3, 2, 2), (3, 4, 1)])
def test_a_square_of_the_theoretical_size_is_all_that_a_place_depends_on(kernel, patch, depth):
    """Against the gradient itself: around the place that `receptive_field` asks about, neither more nor less."""
    torch.manual_seed(0)
    params = {"kernel": kernel, "patch": patch, "depth": depth}
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
    field = receptive_field(ConvMixer(8, depth, kernel, patch), images, records.CIFAR10_NORMALISATION)
    rows = np.flatnonzero(field.sum(1))
    assert (rows[0] + rows[-1]) / 2 == learned.middle(params)
    assert rows[-1] - rows[0] + 1 == learned.theoretical(params)
    assert learned.side_holding(field, learned.middle(params), 1.0) == learned.theoretical(params)


@pytest.mark.parametrize("arch", ["cnn", "vit"])
def test_the_field_of_other_networks_is_measured_around_its_place(arch):
    """A cnn's place sees pixels evenly to all sides of it, untrained; a vit's sees its own patch most."""
    torch.manual_seed(0)
    params = Params(arch=arch, patch=4, dim=64, depth=2)
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    field = receptive_field(network(params).eval(), images, records.CIFAR10_NORMALISATION)
    pixels = np.arange(32)
    if arch == "vit":
        field = np.where(field > field.max() / 3, field, 0)
    for share in (field.sum(0), field.sum(1)):
        assert share @ pixels / share.sum() == pytest.approx(learned.middle(params.computed()), abs=0.5)


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
    assert list(by_kernel) == [f"k={k}, p=1" for k in (3, 5, 7, 9)]
    assert list(by_patch) == [f"k=9, p={p}" for p in (1, 2, 4)]
    assert len(learned.patch_embeddings(by_patch).axes) == 3
    assert len(learned.kernels(by_kernel).axes) == 4 * 3
    assert "k=9, p=1: half of the gradient within" in learned.receptive_fields(by_kernel).get_label()
    reach = learned.reach(by_kernel)
    assert reach["half"].is_monotonic_increasing and (reach["most"] >= reach["half"]).all()


def test_a_network_without_kernels_has_a_field_alone(home):
    study = made.study(settings=["cnn"])
    made.fill(study)
    arrays = records.read_arrays(records.load(study)["record"][0])
    assert learned.kernels({"cnn": arrays}) is None and learned.patch_embeddings({"cnn": arrays}) is None
    found = learned.one(records.load(study)["record"][0], arrays)
    assert learned.reach(found)["theoretical"].isna().all() and learned.reach(found)["half"].all()
    assert learned.receptive_fields(found) is not None
    assert run_figures.reach(CNN()) is None


def test_nothing_is_drawn_of_nothing(home):
    found = learned.networks(records.load(made.study()), "kernel")
    assert found == {} and learned.kernels(found) is None and learned.receptive_fields(found) is None
    assert learned.reach(found).empty


def test_one_run_is_drawn_by_itself(home):
    study = made.study(settings=["kernel-5"])
    made.fill(study)
    record = records.load(study)["record"][0]
    found = learned.one(record, records.read_arrays(record))
    assert list(found) == ["k=5, p=1"] and list(learned.reach(found)["network"]) == list(found)
    for draw in (learned.kernels, learned.patch_embeddings, learned.receptive_fields):
        assert "k=5, p=1" in draw(found).get_label()
