"""Augmentation against the libraries it follows: pixels exactly, draws in distribution (fixed seeds, so no flakes)."""

import concurrent.futures
import hashlib
import pickle
import random
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats
from timm.data import auto_augment, mixup, random_erasing
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode, autoaugment, functional

from lib.data import augment, draws, mix, randaugment
from lib.data.augment import FRAME, Augment, Plan, normalise
from lib.data.draws import order
from lib.data.randaugment import OP, Code
from lib.native import compiler
from lib.params import Params, parse_randaugment

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
FILL = (125, 123, 114)  # MEAN as bytes


def doing(**values) -> Params:
    """Parameters that do nothing to an image but what is named."""
    nothing = {"crop": "none", "flip": False, "randaugment": "none", "erasing": 0.0, "mixup": 0.0, "cutmix": 0.0}
    return Params(**{**nothing, **values})


RECIPES = {
    "study": doing(crop="pad", flip=True, randaugment="torchvision-2-9", erasing=0.25),
    "original": doing(
        crop="resized", flip=True, randaugment="rand-m9-mstd0.5-inc1", erasing=0.25, erasing_mode="pixel"
    ),
    "fast": doing(crop="resized", crop_ratio=1.0, flip=True, randaugment="torchvision-2-12", jitter=0.1, erasing=0.25),
    "light": doing(crop="reflect", flip=True),
    "none": doing(),
}


def pictures(n: int, height: int = 32, width: int = 32, seed: int = 0) -> np.ndarray:
    """n images (n, height, width, 3): in turn noise, a smooth pattern, few values, one value and dark."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    made = []
    for i in range(n):
        noise = rng.integers(0, 256, (height, width, 3))
        a, b = rng.uniform(0.05, 0.4, (2, 3))
        waves = 127.5 + 90 * np.sin(a * x[..., None] + i) + 37 * np.cos(b * y[..., None])
        flat = np.broadcast_to(rng.integers(0, 256, 3), noise.shape)
        made.append([noise, waves, noise // 80 * 80, flat, noise // 9 + 3][i % 5])
    return np.asarray(made).astype(np.uint8)


@pytest.fixture(params=["c", "pillow"])
def applied_by(request, monkeypatch):
    """Runs a test with each of the two ways to apply a plan."""
    if request.param == "pillow":
        monkeypatch.setattr(compiler, "load", lambda *_: None)
    elif compiler.load("augment", "-ffp-contract=off") is None:
        pytest.skip("no C compiler")
    return request.param


def apply_ops(images: np.ndarray, ops: np.ndarray, recipe: Params = RECIPES["none"]) -> np.ndarray:
    """Each image (N, H, W, 3) after its own operations (N, k)."""
    maker = Augment(images, recipe, MEAN, STD)
    return maker.batch(Plan(maker.plan(0).frames, ops), np.arange(len(images)))


def assert_pixels(got: np.ndarray, expected: list) -> None:
    """Normalised `got` shows exactly the byte images `expected`; normalisation keeps all 256 values apart."""
    expected = normalise(np.stack([np.asarray(image) for image in expected]), MEAN, STD)
    wrong = np.flatnonzero((got != expected).any((1, 2, 3)))
    assert not len(wrong), f"images {wrong[:10]} of {len(got)} differ"


# ---- Pixels ----

SIZES = [(32, 32), (40, 24), (9, 8)]


@pytest.mark.parametrize("size", SIZES)
def test_torchvision_ops_are_exact(applied_by, size):
    """Every operation of torchvision's RandAugment, at every magnitude, with both signs."""
    height, width = size
    space = tv.RandAugment()._augmentation_space(31, (height, width))
    ops, expected = [], []
    images = pictures(5, *size)
    used = np.tile(images, (31 * 14 * 2 // 5 + 1, 1, 1, 1))[: 31 * 14 * 2]
    for magnitude in range(31):
        choices = randaugment.torchvision_choices(magnitude, height, width)
        for number, (name, (levels, signed)) in enumerate(space.items()):
            level = float(levels[magnitude]) if levels.ndim else 0.0
            for column, sign in enumerate((1, -1)):
                image = Image.fromarray(used[len(ops)])
                value = level * sign if signed else level
                expected.append(autoaugment._apply_op(image, name, value, InterpolationMode.NEAREST, None))
                ops.append(choices[number, column])
    assert_pixels(apply_ops(used, np.array(ops)[:, None]), expected)


@pytest.mark.parametrize("size", SIZES)
def test_timm_ops_are_exact(applied_by, size, monkeypatch):
    """Every operation of timm's increasing set over its magnitudes, both signs, both interpolations."""
    levels = np.r_[np.linspace(0, 10, 11), np.random.default_rng(0).normal(9, 0.5, 6).clip(0, 10)]
    grid = [(n, level, s, f) for n in range(15) for level in levels for s in (1, -1) for f in (2, 3)]
    which, level, sign, filters = (np.array(column) for column in zip(*grid, strict=True))
    ops = randaugment.timm_ops(which, level, np.float64(sign), *size)
    ops["filter"] = filters
    images = np.tile(pictures(5, *size), (len(grid) // 5, 1, 1, 1))
    expected = []
    for (n, level, s, f), image in zip(grid, images, strict=True):
        name = auto_augment._RAND_INCREASING_TRANSFORMS[n]
        monkeypatch.setattr(auto_augment, "_randomly_negate", lambda v, s=s: v * s)
        arguments = auto_augment.LEVEL_TO_ARG[name]
        arguments = arguments(level, {}) if arguments else ()
        if name == "PosterizeIncreasing":
            arguments = (max(1, *arguments),)  # Pillow refuses timm's 0 bits
        made = auto_augment.NAME_TO_OP[name](Image.fromarray(image), *arguments, fillcolor=FILL, resample=f)
        expected.append(made)
    got = apply_ops(images, ops[:, None], doing(randaugment="rand-m9-inc1"))  # for timm's fill
    assert_pixels(got, expected)


def test_operations_in_a_row_are_exact(applied_by):
    """Longer rows, as RandAugment and jitter make them, with torchvision's own functions one after the other."""
    images = pictures(300)
    u = draws.uniform(1, 2, draws.Purpose.JITTER, len(images), 4)
    ops = np.concatenate([randaugment.draw_jitter(0.9, u), randaugment.draw_jitter(0.4, u[:, ::-1])], axis=1)
    names = {Code.BRIGHTNESS: "brightness", Code.CONTRAST: "contrast", Code.COLOR: "saturation"}
    expected = []
    for image, row in zip(images, ops, strict=True):
        image = Image.fromarray(image)
        for op in row:
            image = getattr(functional, f"adjust_{names[op['code']]}")(image, float(op["arg"][0]))
        expected.append(image)
    assert_pixels(apply_ops(images, ops), expected)


@pytest.mark.parametrize("mode", ["pad", "reflect"])
def test_shifts_are_exact(applied_by, mode):
    """All 81 places of a padded crop, mirrored or not."""
    places = [(top, left, flip) for top in range(9) for left in range(9) for flip in (0, 1)]
    images = pictures(len(places), 11, 17)
    maker = Augment(images, doing(crop=mode), MEAN, STD)
    plan = maker.plan(0)
    expected = []
    for frame, image, (top, left, flip) in zip(plan.frames, images, places, strict=True):
        frame["top"], frame["left"], frame["flip"] = top - 4, left - 4, flip
        padded = functional.pad(Image.fromarray(image), 4, 0, {"pad": "constant"}.get(mode, mode))
        made = functional.crop(padded, top, left, 11, 17)
        expected.append(functional.hflip(made) if flip else made)
    assert_pixels(maker.batch(plan, np.arange(len(images))), expected)


@pytest.mark.parametrize("size", SIZES)
def test_resized_crops_are_exact(applied_by, size):
    """Windows of every height and width, enlarged with both filters."""
    height, width = size
    windows = [(h, w, f) for h in range(1, height + 1) for w in range(1, width + 1) for f in (2, 3)]
    images = np.tile(pictures(5, *size), (len(windows) // 5 + 1, 1, 1, 1))[: len(windows)]
    maker = Augment(images, doing(crop="resized"), MEAN, STD)
    frames, expected = np.zeros(len(windows), FRAME), []
    rng = np.random.default_rng(0)
    for frame, image, (h, w, f) in zip(frames, images, windows, strict=True):
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        frame["top"], frame["left"], frame["height"], frame["width"], frame["filter"] = top, left, h, w, f
        mode = {2: InterpolationMode.BILINEAR, 3: InterpolationMode.BICUBIC}[f]
        image = Image.fromarray(image)
        expected.append(functional.resized_crop(image, int(top), int(left), h, w, [height, width], mode))
    assert_pixels(maker.batch(Plan(frames, np.zeros((len(windows), 0), OP)), np.arange(len(windows))), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", RECIPES)
def test_c_and_pillow_agree(name, size, monkeypatch):
    """Whole recipes, every float of the result."""
    if compiler.load("augment", "-ffp-contract=off") is None:
        pytest.skip("no C compiler")
    maker = Augment(pictures(400, *size), RECIPES[name].replace(seed=3), MEAN, STD)
    plan, indices = maker.plan(1), order(3, 1, 400)
    ours = maker.batch(plan, indices)
    monkeypatch.setattr(compiler, "load", lambda *_: None)
    theirs = maker.batch(plan, indices)
    assert ours.dtype == theirs.dtype == np.float32
    assert ours.tobytes() == theirs.tobytes()
    assert ours.flags.c_contiguous and ours.shape == (400, *size, 3)


def test_normalisation_is_torchvisions():
    images = pictures(20)
    to_tensor = tv.Compose([tv.ToTensor(), tv.Normalize(MEAN, STD)])
    expected = np.stack([to_tensor(Image.fromarray(image)).permute(1, 2, 0).numpy() for image in images])
    assert normalise(images, MEAN, STD).tobytes() == expected.tobytes()
    nothing = Augment(images, doing(), MEAN, STD)
    assert nothing.batch(nothing.plan(0), np.arange(20)).tobytes() == expected.tobytes()


def test_holes(applied_by):
    """Erased pixels are 0 after normalisation, or the stretch of noise that the plan names; the rest is untouched."""
    images = pictures(200)
    for mode in ("zero", "pixel"):
        maker = Augment(images, doing(erasing=0.5, erasing_mode=mode), MEAN, STD)
        plan = maker.plan(0)
        expected = normalise(images, MEAN, STD)
        for image, frame in zip(expected, plan.frames, strict=True):
            top, left, h, w = frame["hole"]
            bank = np.zeros(3 * 1024) if mode == "zero" else maker.bank[frame["noise"] :]
            image[top : top + h, left : left + w] = bank[: 3 * h * w].reshape(h, w, 3)
        assert (maker.batch(plan, np.arange(200)) == expected).all()


# ---- Draws ----

N = 20_000


def same(ours, theirs, p: float = 1e-4) -> bool:
    """Whether two samples may come from one distribution (Kolmogorov-Smirnov)."""
    return stats.ks_2samp(ours, theirs, method="asymp").pvalue > p


def frequencies_same(counts, shares) -> bool:
    """Whether counts may come from these shares (chi squared)."""
    expected = np.asarray(shares) / np.sum(shares) * np.sum(counts)
    return stats.chisquare(counts, expected).pvalue > 1e-4


def plan_of(recipe: Params, n: int = N, height: int = 32, width: int = 32) -> Plan:
    return Augment(np.zeros((n, height, width, 3), np.uint8), recipe.replace(seed=7), MEAN, STD).plan(2)


def test_flips_and_shifts():
    frames = plan_of(doing(crop="pad", flip=True)).frames
    assert abs(frames["flip"].mean() - 0.5) < 4 * 0.5 / N**0.5
    for name in ("top", "left"):
        values, counts = np.unique(frames[name], return_counts=True)
        assert values.tolist() == list(range(-4, 5)) and frequencies_same(counts, np.ones(9))
    for a, b in (("top", "left"), ("top", "flip"), ("left", "flip")):
        assert abs(np.corrcoef(frames[a], frames[b])[0, 1]) < 4 / N**0.5


@pytest.mark.parametrize("size", [(32, 32), (20, 40)])
@pytest.mark.parametrize(("scale", "ratio"), [(0.75, 4 / 3), (0.75, 1.0), (0.08, 4 / 3)])
def test_resized_windows(scale, ratio, size):
    """Against timm's and torchvision's own choice of windows; 20 x 40 with ratio 1 never fits: the middle then."""
    height, width = size
    f = plan_of(doing(crop="resized", crop_scale=scale, crop_ratio=ratio), 8000, *size).frames
    random.seed(0)
    torch.manual_seed(0)
    image = Image.new("RGB", (width, height))
    arguments = (image, (scale, 1.0), (1 / ratio, ratio))
    for get in (RandomResizedCropAndInterpolation.get_params, tv.RandomResizedCrop.get_params):
        top, left, h, w = np.array([get(*arguments) for _ in range(8000)]).T
        assert same(f["height"], h) and same(f["width"], w)
        assert same(f["height"] / f["width"], h / w) and same(f["height"] * f["width"], h * w)
        assert same(f["top"], top) and same(f["left"], left)
    # The comparison can fail: a slightly different range is told apart.
    if size == (32, 32):
        other = plan_of(doing(crop="resized", crop_scale=scale + 0.05, crop_ratio=ratio), 8000).frames
        assert not same(other["height"] * other["width"], h * w)


def test_interpolation_of_resized_crops():
    """torchvision's is bilinear, timm's bilinear or bicubic, evenly, here and in RandAugment."""
    assert (plan_of(RECIPES["fast"]).frames["filter"] == 2).all()
    plan = plan_of(RECIPES["original"])
    for filters in (plan.frames["filter"], *plan.ops["filter"].T):
        values, counts = np.unique(filters, return_counts=True)
        assert values.tolist() == [2, 3] and frequencies_same(counts, [1, 1])
    assert abs(np.corrcoef(plan.frames["filter"], plan.ops["filter"][:, 0])[0, 1]) < 4 / N**0.5


def test_holes_of_torchvision():
    frames = plan_of(doing(erasing=0.25)).frames
    share = (frames["hole"][:, 2] > 0).mean()
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / N) ** 0.5
    torch.manual_seed(0)
    image = torch.zeros(3, 32, 32)
    theirs = [tv.RandomErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4] for _ in range(5000)]
    _compare_holes(frames["hole"][frames["hole"][:, 2] > 0], np.array(theirs))


def test_holes_of_timm():
    hole = plan_of(doing(erasing=1.0, erasing_mode="pixel")).frames["hole"]

    class Noting(list):
        def __setitem__(self, place, _):
            _, rows, columns = place
            self.append((rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start))

    random.seed(0)
    eraser, theirs = random_erasing.RandomErasing(probability=1.0, mode="const", device="cpu"), Noting()
    for _ in range(5000):
        eraser._erase(theirs, 3, 32, 32, torch.float32)
    _compare_holes(hole[hole[:, 2] > 0], np.array(theirs))


def _compare_holes(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Rectangles (n, 4) as top, left, height, width: size, shape, place, and that they stay inside."""
    assert same(ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3])
    assert same(ours[:, 2] / ours[:, 3], theirs[:, 2] / theirs[:, 3])
    assert same(ours[:, 0], theirs[:, 0]) and same(ours[:, 1], theirs[:, 1])
    for rectangles in (ours, theirs):
        assert (rectangles[:, :2] >= 0).all() and (rectangles[:, :2] + rectangles[:, 2:]).max() == 32


def test_noise_is_normal():
    maker = Augment(pictures(4000), doing(erasing=1.0, erasing_mode="pixel"), MEAN, STD)
    assert np.isfinite(maker.bank).all()
    assert stats.kstest(maker.bank[:100_000], "norm").pvalue > 1e-4
    plan = maker.plan(0)
    assert stats.kstest(plan.frames["noise"] / augment.BANK, "uniform").pvalue > 1e-4


def test_torchvision_choices_are_even():
    """All 14 operations and both signs, alike in both layers, and the layers independent."""
    choices = randaugment.torchvision_choices(9, 32, 32)
    codes = [tuple(op.item()[:2]) + tuple(op["arg"]) for op in choices.ravel()]
    ops = plan_of(doing(randaugment="torchvision-2-9")).ops
    assert ops.shape == (N, 2)
    shares = {code: codes.count(code) for code in codes}  # an operation without a sign stands there twice
    for layer in ops.T:
        seen = [tuple(op.item()[:2]) + tuple(op["arg"]) for op in layer]
        assert set(seen) == set(shares)
        assert frequencies_same([seen.count(code) for code in shares], list(shares.values()))
    table = stats.contingency.crosstab(ops["code"][:, 0], ops["code"][:, 1]).count
    assert stats.chi2_contingency(table).pvalue > 1e-4


def arguments_by_name(ops: np.ndarray) -> dict[str, np.ndarray]:
    """The arguments of drawn OPs, by timm's name of the operation (0 where it has none), in timm's units."""
    code, arg = ops["code"].ravel(), ops["arg"].reshape(-1, 6)
    flat = (code == Code.AFFINE) & (arg[:, 0] == 1)
    turned = (code == Code.AFFINE) & (arg[:, 0] != 1)
    codes = {"AutoContrast": Code.AUTOCONTRAST, "Equalize": Code.EQUALIZE, "Invert": Code.INVERT}
    codes |= {"PosterizeIncreasing": Code.POSTERIZE, "SolarizeIncreasing": Code.SOLARIZE}
    codes |= {"SolarizeAdd": Code.SOLARIZE_ADD, "ColorIncreasing": Code.COLOR, "ContrastIncreasing": Code.CONTRAST}
    codes |= {"BrightnessIncreasing": Code.BRIGHTNESS, "SharpnessIncreasing": Code.SHARPNESS}
    columns = {"ShearX": 1, "ShearY": 3, "TranslateXRel": 2, "TranslateYRel": 5}
    found = {name: arg[code == number, 0] for name, number in codes.items()}
    found |= {name: arg[flat & (arg[:, k] != 0), k] / (32 if "Trans" in name else 1) for name, k in columns.items()}
    # A picture turned counter-clockwise takes its right edge (x = 1) from further down in the source.
    return found | {"Rotate": np.degrees(np.arctan2(arg[turned, 1], arg[turned, 0])) * -1}


def test_timm_policy_draws(monkeypatch):
    """timm's own RandAugment, its operations replaced by ones that note their arguments."""
    noted = {}
    for name in auto_augment._RAND_INCREASING_TRANSFORMS:
        noted[name] = []
        note = noted[name].append
        monkeypatch.setitem(auto_augment.NAME_TO_OP, name, lambda _, value=0.0, note=note, **__: note(value))
    random.seed(0)
    np.random.seed(0)
    theirs = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
    for _ in range(N):
        theirs(None)
    noted["PosterizeIncreasing"] = np.maximum(1, noted["PosterizeIncreasing"])
    ops = plan_of(doing(randaugment="rand-m9-mstd0.5-inc1")).ops
    ours = arguments_by_name(ops)
    assert ours.keys() == noted.keys()
    for drawn in (ours, noted):
        assert abs(sum(map(len, drawn.values())) / (2 * N) - 0.5) < 4 * 0.5 / (2 * N) ** 0.5
        assert frequencies_same([len(values) for values in drawn.values()], np.ones(15))
    lower = arguments_by_name(plan_of(doing(randaugment="rand-m8-mstd0.5-inc1")).ops)
    wider = arguments_by_name(plan_of(doing(randaugment="rand-m9-mstd1-inc1")).ops)
    for name, values in noted.items():
        assert same(ours[name], values), name
        if name not in ("AutoContrast", "Equalize", "Invert"):
            assert not same(lower[name], values), f"{name}: the comparison does not tell magnitude 8 from 9"
            known = same(wider[name], values)
            assert known == (name == "PosterizeIncreasing"), f"{name}: the comparison does not tell mstd 1 from 0.5"
    table = stats.contingency.crosstab(ops["code"][:, 0], ops["code"][:, 1]).count
    assert stats.chi2_contingency(table).pvalue > 1e-4  # the layers are independent


def test_jitter_draws():
    ops = plan_of(doing(jitter=0.1)).ops
    torch.manual_seed(0)
    jitter = tv.ColorJitter(0.1, 0.1, 0.1)
    drawn = [jitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, None) for _ in range(5000)]
    for k, code in enumerate((Code.BRIGHTNESS, Code.CONTRAST, Code.COLOR)):
        assert same(ops["arg"][ops["code"] == code][:, 0], [one[k + 1] for one in drawn])
    rows, counts = np.unique(ops["code"], axis=0, return_counts=True)
    assert len(rows) == 6 and frequencies_same(counts, np.ones(6))


@pytest.mark.parametrize("name", ["study", "original", "fast"])
def test_pixels_have_the_distribution_of_the_real_pipelines(name):
    """The libraries' own pipelines, images in and floats out: per-image mean and spread, and the values of pixels."""
    n = 2000
    images = pictures(n, seed=1)
    recipe = RECIPES[name]
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    end = [tv.ToTensor(), tv.Normalize(MEAN, STD)]
    if name == "study":
        steps = [tv.RandomCrop(32, padding=4), tv.RandomHorizontalFlip(), tv.RandAugment(2, 9), *end]
        steps.append(tv.RandomErasing(p=0.25))
    elif name == "fast":
        steps = [tv.RandomResizedCrop(32, (0.75, 1), (1, 1)), tv.RandomHorizontalFlip(), tv.RandAugment(2, 12)]
        steps += [tv.ColorJitter(0.1, 0.1, 0.1), *end, tv.RandomErasing(p=0.25)]
    else:
        posterize = auto_augment.NAME_TO_OP["PosterizeIncreasing"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(
                auto_augment.NAME_TO_OP, "PosterizeIncreasing", lambda im, bits, **_: posterize(im, max(1, bits))
            )
            policy = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL})
        steps = [RandomResizedCropAndInterpolation(32, (0.75, 1), interpolation="random"), tv.RandomHorizontalFlip()]
        steps += [policy, *end, random_erasing.RandomErasing(0.25, mode="pixel", device="cpu")]
    pipeline = tv.Compose(steps)
    theirs = np.stack([pipeline(Image.fromarray(image)).permute(1, 2, 0).numpy() for image in images])
    maker = Augment(images, recipe.replace(seed=5), MEAN, STD)
    ours = maker.batch(maker.plan(0), np.arange(n))
    plain = normalise(images, MEAN, STD)
    for measure in (np.mean, np.std, np.max, np.min, lambda x, axis: np.abs(np.diff(x, axis=2)).mean(axis)):
        a, b, c = (measure(x, axis=(1, 2, 3)) for x in (ours, theirs, plain))
        assert same(a, b)
        assert not same(c, b), "the measure does not even tell augmented images from plain ones"


# ---- Determinism ----


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_depends_on_seed_epoch_and_index_alone(name, applied_by):
    images = pictures(300)
    maker = Augment(images, RECIPES[name].replace(seed=11), MEAN, STD)
    plan = maker.plan(4)
    whole = maker.batch(plan, np.arange(300))
    picked = order(11, 4, 300)[:50]
    assert (maker.batch(plan, picked) == whole[picked]).all()
    assert (np.concatenate([maker.batch(plan, [i]) for i in picked]) == whole[picked]).all()
    assert maker.batch(plan, np.arange(0)).shape == (0, 32, 32, 3)
    # Another object, unpickled, that knows fewer images.
    fewer = pickle.loads(pickle.dumps(Augment(images[:60], RECIPES[name].replace(seed=11), MEAN, STD)))
    assert (fewer.batch(fewer.plan(4), np.arange(60)) == whole[:60]).all()
    for seed, epoch in ((11, 5), (12, 4)):
        other = Augment(images, RECIPES[name].replace(seed=seed), MEAN, STD)
        assert (other.batch(other.plan(epoch), np.arange(300)) == whole).all() == (name == "none")


def test_threads_do_not_disturb_each_other():
    maker = Augment(pictures(2000), RECIPES["original"], MEAN, STD)
    plan = maker.plan(0)
    parts = np.array_split(order(0, 0, 2000), 40)
    alone = [maker.batch(plan, part) for part in parts]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda part: maker.batch(plan, part), parts))
    assert all((a == b).all() for a, b in zip(alone, together, strict=True))


def test_one_augmentation_leaves_the_draws_of_the_others():
    with_all, without = plan_of(RECIPES["study"]), plan_of(replace(RECIPES["study"], erasing=0.0, flip=False))
    assert (with_all.ops == without.ops).all()
    assert (with_all.frames["top"] == without.frames["top"]).all()
    assert (with_all.frames["flip"] != without.frames["flip"]).any()


def test_streams_are_apart():
    """Every purpose, seed, epoch and batch has numbers of its own; image by image, too."""
    keys = [(s, e, p, b) for s in (0, 1, 2**64 - 2, 2**64 - 1) for e in (0, 1) for p in draws.Purpose for b in (0, 1)]
    words = np.concatenate([draws.philox(*key).random_raw(100) for key in keys])
    assert len(np.unique(words)) == len(words) == 100 * len(keys)
    with pytest.raises(OverflowError):
        draws.philox(-1, 0, draws.Purpose.CROP)


def test_order():
    first = order(0, 0, 1000)
    assert first.dtype == np.int64 and sorted(first) == list(range(1000))
    assert (first == order(0, 0, 1000)).all()
    assert (first != order(0, 1, 1000)).any() and (first != order(1, 0, 1000)).any()
    # Where image 0 lands is uniform, and no two epochs have much in common.
    places = [int(np.flatnonzero(order(5, epoch, 50) == 0)[0]) for epoch in range(3000)]
    assert frequencies_same(np.bincount(places, minlength=50), np.ones(50))


def test_golden():
    """Fails when the same parameters no longer give the same numbers: then raise NUMERICS in lib/params.py."""
    digests = {}
    for name, recipe in RECIPES.items():
        maker = Augment(pictures(64), recipe.replace(seed=1), MEAN, STD)
        digests[name] = hashlib.sha256(maker.batch(maker.plan(2), order(1, 2, 64))).hexdigest()[:16]
    recipe = doing(mixup=0.5, cutmix=0.5)
    shares = [round(mix.draw(recipe.replace(seed=1), 2, batch, 32, 32)[0], 9) for batch in range(8)]
    digests["mix"] = hashlib.sha256(repr(shares).encode()).hexdigest()[:16]
    assert digests == GOLDEN


GOLDEN = {
    "study": "bb406a30878b4f25",
    "original": "11a89c979220b002",
    "fast": "b12584db7db1b513",
    "light": "e0f47434b7e8bc58",
    "none": "9713b284d09aa2ce",
    "mix": "7cb37c0f5fe6b421",
}


# ---- Mixup and CutMix ----

BOTH = doing(mixup=0.5, cutmix=0.5, label_smoothing=0.1)


def tensors(n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 3, 32, 32, generator=generator).to(memory_format=torch.channels_last)
    return images, torch.randint(10, (n,), generator=generator)


class TimmRandom:
    """numpy.random as timm's Mixup calls it, answering from our stream of one batch."""

    def __init__(self, seed, epoch, batch):
        self.generator = np.random.Generator(draws.philox(seed, epoch, draws.Purpose.MIX, batch))
        gate, switch, y, x = self.generator.random(4)
        self.uniform, self.places = [gate, switch], [y, x]

    def rand(self):
        return self.uniform.pop(0)

    def beta(self, a, b):
        return self.generator.beta(a, b)

    def randint(self, low, high, size=None):
        return int(low + self.places.pop(0) * (high - low))


@pytest.mark.parametrize(
    "recipe",
    [
        BOTH,
        replace(BOTH, mix_prob=0.5),
        doing(mixup=0.8),
        doing(cutmix=1.0),
        doing(mixup=0.2, label_smoothing=0.3),
    ],
)
def test_mix_is_timms(recipe, monkeypatch):
    """timm's Mixup on the same draws: images and targets to the bit, for many batches."""
    images, labels = tensors(16)
    oracle = mixup.Mixup(
        recipe.mixup, recipe.cutmix, None, recipe.mix_prob, 0.5, "batch", True, recipe.label_smoothing, 10
    )
    kinds = set()
    for batch in range(60):
        monkeypatch.setattr(mixup, "np", SimpleNamespace(random=TimmRandom(1, 2, batch), sqrt=np.sqrt, clip=np.clip))
        expected, targets = oracle(images.clone(), labels)
        mixed, soft = mix.mix(images, labels, recipe.replace(seed=1), 2, batch)
        assert torch.equal(mixed, expected) and torch.equal(soft, targets)
        lam, box = mix.draw(recipe.replace(seed=1), 2, batch, 32, 32)
        kinds.add("cut" if box else "mixed" if lam < 1 else "plain")
    possible = {"cut": recipe.cutmix > 0, "mixed": recipe.mixup > 0, "plain": recipe.mix_prob < 1}
    assert kinds == {kind for kind, can_be in possible.items() if can_be}


def test_mix_keeps_its_input_and_layout():
    images, labels = tensors(9)
    before = images.clone()
    for batch in range(12):
        mixed, targets = mix.mix(images, labels, BOTH, 0, batch)
        assert torch.equal(images, before)
        assert mixed.is_contiguous(memory_format=torch.channels_last) and mixed.dtype == torch.float32
        assert targets.shape == (9, 10) and torch.allclose(targets.sum(1), torch.ones(9))
        # The middle of an odd batch is its own partner.
        assert torch.allclose(mixed[4], images[4], atol=1e-6)
        assert targets[4].argmax() == labels[4] and targets[4].max() == pytest.approx(0.91)


def test_mix_targets_weigh_the_pixels():
    """CutMix: the share of a label is the share of pixels of its image, also where the border clips the box."""
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 32, 32)
    for batch in range(40):
        mixed, targets = mix.mix(images, torch.arange(8), doing(cutmix=1.0), 0, batch)
        kept = (mixed[:, 0] == images[:, 0]).float().mean((1, 2))
        assert torch.allclose(targets[torch.arange(8), torch.arange(8)], kept, atol=1e-6)


def test_mix_draws():
    """How often, which of the two, and how much: alpha reaches the Beta distribution."""
    recipe = doing(mixup=0.4, cutmix=1.0, mix_prob=0.6)
    drawn = [mix.draw(recipe, 1, batch, 32, 32) for batch in range(6000)]
    mixed = [lam for lam, box in drawn if box is None and lam != 1]
    cut = [box for _, box in drawn if box is not None]
    assert frequencies_same([len(mixed), len(cut), 6000 - len(mixed) - len(cut)], [0.3, 0.3, 0.4])
    assert stats.kstest(mixed, stats.beta(0.4, 0.4).cdf).pvalue > 1e-4
    assert stats.kstest(mixed, stats.beta(0.6, 0.6).cdf).pvalue < 1e-4
    assert mix.draw(doing(), 0, 0, 32, 32) == (1.0, None)
    assert mix.draw(recipe, 1, 3, 32, 32) == drawn[3] != mix.draw(recipe, 2, 3, 32, 32)


# ---- Wrong input ----


@pytest.mark.parametrize(
    "text",
    [
        *("", "none-", "None", "torchvision", "torchvision-2", "torchvision-0-9", "torchvision-2-31"),
        *("rand", "rand-m9", "rand-m11-inc1", "rand-m9-inc0", "rand-m9-mstd-inc1", "rand-m9-x3-inc1"),
        *("rand-m9.5-inc1", "rand-m9-p2-inc1", "rand-m9-mstd0.5-inc1 ", "torchvision-2-9-", "augmix-m3"),
    ],
)
def test_unknown_policies_are_refused(text):
    with pytest.raises(ValueError, match=r"^randaugment=.*torchvision-OPS-MAGNITUDE.*rand-m") as caught:
        doing(randaugment=text)
    assert "\n" not in str(caught.value)


def test_policies_are_read():
    parse = parse_randaugment
    assert parse("none").layers == 0
    assert parse("torchvision-2-9") == ("torchvision", 2, 9, 0.0, 1.0)
    assert parse("rand-m9-mstd0.5-inc1") == ("timm", 2, 9, 0.5, 0.5)
    assert parse("rand-m10-n3-p0.8-mstd1-inc1") == ("timm", 3, 10, 1.0, 0.8)


def test_wrong_input_is_refused():
    for wrong in ({"crop": "padded"}, {"erasing_mode": "noise"}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            doing(**wrong)
    good = pictures(10)
    for images in (good.astype(np.float32), good[..., ::-1], good[0], np.moveaxis(good, 3, 1)):
        with pytest.raises(ValueError, match="images"):
            Augment(images, doing(), MEAN, STD)
    maker = Augment(good, doing(), MEAN, STD)
    for indices in ([10], [-1], [0, 3, 99]):
        with pytest.raises(IndexError):
            maker.batch(maker.plan(0), indices)
    with pytest.raises(IndexError):
        maker.batch(Augment(good[:5], doing(), MEAN, STD).plan(0), [0])


# ---- Speed ----


def test_speed(applied_by):
    """Prints microseconds an image with -s; the bound only catches a loss of a whole order."""
    images = pictures(2000)
    for name, recipe in RECIPES.items():
        maker = Augment(images, recipe, MEAN, STD)
        plan, places = maker.plan(0), order(0, 0, 2000)
        taken = []
        for _ in range(3):
            start = time.perf_counter()
            for at in range(0, 256, 64):
                maker.batch(plan, places[at : at + 64])
            taken.append((time.perf_counter() - start) / 256 * 1e6)
        print(f"\n{applied_by:7} {name:9} {min(taken):6.1f} us an image", end="")
        assert min(taken) < (200 if applied_by == "c" else 10_000)


def test_planning_is_cheap():
    recipe = replace(RECIPES["original"], jitter=0.1)
    maker = Augment(np.zeros((50_000, 32, 32, 3), np.uint8), recipe, MEAN, STD)
    start = time.perf_counter()
    maker.plan(0)
    print(f"\nplan of 50,000 images: {time.perf_counter() - start:.2f} s", end="")
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("native", [True, False])
def test_some_of_the_images_are_augmented_as_if_they_were_all(native, monkeypatch):
    if not native:
        monkeypatch.setattr("lib.data.augment._native", lambda: None)
    images, rows = pictures(50), np.array([3, 40, 7, 7, 21])
    some, alone = (Augment(*given) for given in ((images, RECIPES["original"], MEAN, STD, rows),
                                                 (images[rows], RECIPES["original"], MEAN, STD)))  # fmt: skip
    order = np.array([4, 0, 2])
    np.testing.assert_array_equal(some.batch(some.plan(1), order), alone.batch(alone.plan(1), order))
    with pytest.raises(IndexError):
        some.batch(some.plan(1), [5])
