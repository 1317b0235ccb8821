"""The data set that a run asks for: CIFAR-10, CIFAR-100 or a folder of pictures, with its classes.

A folder of pictures has a folder for each class, as torchvision's ImageFolder has: PATH/train/CLASS/* beside
PATH/test/CLASS/*, or PATH/CLASS/* alone. Then a fifth of each class, by a hash of the files' names, is the test part:
the same for every seed and on every machine.
"""

import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.data import download
from lib.data.download import DataError
from lib.data.picture import picture
from lib.files import lock
from lib.params import DATASETS, FOLDER, IMAGE, TRAIN_IMAGES, ParameterError, Params, UserError, check_sizes
from lib.records import CIFAR10_NORMALISATION, CLASSES, MEAN, STD, TEST_IMAGES, Normalisation
from lib.study import ROOT

PICTURES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # as torchvision has them
TEST_SHARE = 5  # of a folder without parts every fifth picture is for testing
PARTS = ("train", "test")
VALIDATION = ("val", "valid", "validation")  # a third part that others have; here the run takes its own from train


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images (N, 32, 32, 3) in uint8 and labels (N,) of a training and a test part, and what has to be known of them.

    Every class has images in both parts. `classes`: the names, by label. `digest`: 16 hex digits over all of it.
    `normalisation`: mean and deviation of each channel, in 0..1, by which images are normalised.
    """

    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    classes: tuple[str, ...] = CLASSES
    digest: str = download.DIGEST
    normalisation: Normalisation = CIFAR10_NORMALISATION


def load(p: Params) -> Dataset:
    """The data set of a run; what is not on the disk is fetched. Raises DataError, PictureError, ParameterError."""
    data = read(p.dataset, p.data_dir)
    if p.dataset == "cifar10":
        return dataclasses.replace(data, normalisation=Normalisation(MEAN, STD[p.std]))
    check_sizes(p, len(data.train_images))
    try:
        split(data.train_labels, p.val_size, p.train_size, p.seed)
    except ParameterError as error:
        raise ParameterError(f"{error} ({p.dataset})") from None
    return dataclasses.replace(data, normalisation=normalisation_of(data.train_images, p.std))


def read(dataset: str, data_dir: str = "") -> Dataset:
    """A data set by what `dataset` may say, whether or not there is enough of it for a run."""
    if dataset == "cifar10":
        return Dataset(**download.cifar10(data_dir))
    return cifar100(data_dir) if dataset == "cifar100" else of_folder(place(dataset))


def kept(p: Params) -> Dataset | None:
    """The data set of a run as `load` gives it, or None where that would have to be fetched or cannot be read."""
    if p.dataset == "cifar10":
        arrays = download.kept(p.data_dir)
        return Dataset(**arrays, normalisation=Normalisation(MEAN, STD[p.std])) if arrays else None
    if p.dataset == "cifar100" and not (download.data_folder(p.data_dir) / "cifar-100-python").is_dir():
        return None
    with contextlib.suppress(UserError):
        return load(p)
    return None


def sizes(p: Params) -> tuple[int, int]:
    """Images that an epoch trains on, and test images; those of a folder are counted, not read. Raises as `load`."""
    train, test = TRAIN_IMAGES, TEST_IMAGES
    if p.dataset not in DATASETS:
        train, test = (sum(map(len, classes.values())) for classes in listed(place(p.dataset)).values())
        check_sizes(p, train)
    return p.train_size or train - p.val_size, test


def split(labels: np.ndarray, val_size: int, train_size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the training and of the validation images, both with (nearly) the shares of the classes in `labels`.

    A function of its arguments alone, so all runs of a seed share the split. `train_size` 0 takes all that is left.
    ParameterError where a class is left without an image to train with.
    """
    random = np.random.default_rng([seed, val_size])
    classes = [random.permutation(np.flatnonzero(labels == c)) for c in range(int(labels.max()) + 1)]
    # Where in its class an image comes, in 0..1: sorted by that, any number of leading images is balanced. Of classes
    # of one size it is first one image of each, then another one of each.
    places = np.concatenate([(np.arange(len(rows)) + 0.5) / len(rows) for rows in classes])
    rows = np.concatenate(classes)[np.argsort(places, kind="stable")]
    val, train = rows[:val_size], rows[val_size:]
    if len(np.unique(labels[train])) < len(classes):
        raise ParameterError(f"val_size={val_size}: of {len(labels)} images it leaves none of some class to train with")
    return np.sort(train[: train_size or None]), np.sort(val)


def normalisation_of(images: np.ndarray, std: str) -> Normalisation:
    """Mean and deviation of each channel over images (N, H, W, 3), uint8, with eight digits; `std` as Params has it."""
    values, counts = np.arange(256) / 255, np.zeros((3, 256), np.int64)
    for part in np.array_split(images, max(1, len(images) // 1000)):  # bincount makes eight bytes of each
        counts += [np.bincount(part[..., c].ravel(), minlength=256) for c in range(3)]
    mean = [np.average(values, weights=n) for n in counts]
    if std == "pixels":
        deviation = [np.average((values - m) ** 2, weights=n) ** 0.5 for m, n in zip(mean, counts, strict=True)]
    else:
        deviation = np.mean([(image / 255).std((0, 1)) for image in images], axis=0)
    # A channel without any contrast has nothing to be divided by.
    return Normalisation(*(tuple(round(float(v), 8) for v in row) for row in (mean, np.maximum(deviation, 1e-3))))


# ---- CIFAR-100 ----


def cifar100(data_dir: str = "") -> Dataset:
    """CIFAR-100 with its 100 fine classes, from the authors' archive, which torchvision checks and unpacks.

    Fetches it, or goes on fetching it, where the data folder has neither the archive nor what is in it. Raises
    DataError.
    """
    from torchvision.datasets import CIFAR100  # torchvision takes seconds to import

    folder = download.data_folder(data_dir)
    try:
        try:
            parts = [CIFAR100(folder, train=part == "train") for part in PARTS]
        except RuntimeError:  # torchvision's for what is not there or not whole
            folder.mkdir(parents=True, exist_ok=True)
            with lock(folder / ".fetch.lock"):
                archive(folder, CIFAR100)
                parts = [CIFAR100(folder, train=part == "train", download=True) for part in PARTS]
    except RuntimeError as error:
        raise DataError(f"{folder / CIFAR100.base_folder}: {error}; move it away and run the same again") from None
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}; about 400 MB are written there") from None
    arrays = {}
    for name, part in zip(PARTS, parts, strict=True):
        images = np.ascontiguousarray(part.data)  # torchvision's has the channels first in memory
        arrays |= {f"{name}_images": images, f"{name}_labels": np.array(part.targets, np.uint8)}
    return Dataset(**arrays, classes=tuple(parts[0].classes), digest=digest_of(arrays.values()))


def archive(folder: Path, of: Any) -> None:
    """Sees to it that the archive of a data set of torchvision's lies in a folder, whole."""
    path = folder / of.filename
    if path.exists():
        try:
            return download.checksum(path, "md5", of.tgz_md5)
        except DataError as error:
            download.say(f"{error}; fetching it again")
    unfinished = folder / f"{of.filename}{download.UNFINISHED}"
    try:
        download.fetch_whole(of.url, unfinished, "md5", of.tgz_md5)
    except DataError as error:
        raise DataError(f"{error}. Or place {of.filename}, from the page of its authors, in {folder}") from None
    unfinished.rename(path)


# ---- A folder of pictures ----


def place(dataset: str) -> Path:
    """The folder that `folder:PATH` names; from the repository's root where it is relative."""
    return ROOT / Path(dataset.removeprefix(FOLDER)).expanduser()


def of_folder(folder: Path) -> Dataset:
    """The pictures of a folder, cut and shrunk to 32 x 32 as lib/data/picture.py does it.

    Smaller ones are enlarged, and a line on stderr says how many. Raises DataError, and PictureError with the name of a
    picture that cannot be read.
    """
    parts = listed(folder)
    classes, small = tuple(parts["train"]), []
    arrays: dict[str, Any] = {}
    kind = np.min_scalar_type(len(classes) - 1)
    for part, files in parts.items():
        # In the order of their hashes: the first few are then pictures of all classes, as in CIFAR-10.
        found = sorted((hashed(path, folder), path, y) for y, name in enumerate(classes) for path in files[name])
        shown = tqdm(found, desc=f"{folder.name}, {part}", unit=" pictures", delay=3)
        arrays[f"{part}_images"] = np.stack([picture(path) for _, path, _ in shown])
        arrays[f"{part}_labels"] = np.array([y for *_, y in found], kind)
        small += [path for _, path, _ in found if size(path) < IMAGE]
    if small:
        download.say(f"{folder}: {len(small)} pictures of less than {IMAGE} x {IMAGE} are enlarged, such as {small[0]}")
    for path in subfolders(folder):
        if path.name.lower() in VALIDATION and (folder / "train").is_dir():
            download.say(f"{path}: its pictures are not used, the validation split is taken from train (val_size)")
    named = np.frombuffer(json.dumps(classes).encode(), np.uint8)
    return Dataset(**arrays, classes=classes, digest=digest_of([*arrays.values(), named]))


def listed(folder: Path) -> dict[str, dict[str, list[Path]]]:
    """The pictures of each class in the training and in the test part: {part: {class: paths}}. Raises DataError."""
    try:
        return _listed(folder)
    except OSError as error:
        raise DataError(f"{error.filename or folder}: {error.strerror or error}") from None


def _listed(folder: Path) -> dict[str, dict[str, list[Path]]]:
    if not folder.is_dir():
        raise DataError(f"dataset={FOLDER}{folder}: no such folder")
    there = [name for name in PARTS if (folder / name).is_dir()]
    if len(there) == 1:
        other = PARTS[1 - PARTS.index(there[0])]
        raise DataError(f"{folder}: holds {there[0]} but no {other}; give it both, or the folders of the classes alone")
    if there:
        parts = {name: by_class(folder / name) for name in PARTS}
        for name, other in (PARTS, PARTS[::-1]):
            if only := [c for c in parts[name] if c not in parts[other]]:
                raise DataError(f"{folder}: {name} has a class that {other} has not: {', '.join(only[:3])}")
        return parts
    refuse_other_names(folder)
    parts = {name: {} for name in PARTS}
    for name, files in by_class(folder).items():
        if len(files) < 2:
            raise DataError(f"{folder / name}: one picture, but a class needs one to train with and one for the test")
        files = sorted(files, key=lambda path: hashed(path, folder))
        of_test = max(1, len(files) // TEST_SHARE)
        parts["test"][name], parts["train"][name] = files[:of_test], files[of_test:]
    return parts


def refuse_other_names(folder: Path) -> None:
    """DataError where the parts have other names, such as Train and Test: they would be taken for two classes."""
    inside = subfolders(folder)
    parts = [path.name for path in inside if path.name.lower() in PARTS or not any(map(is_picture, path.iterdir()))]
    likes = [[name for name in parts if re.search(like, name.lower())] for like in ("train", "test|val")]
    if all(likes):
        names = f"{likes[0][0]} and {likes[1][0]}"
        raise DataError(f"{folder}: {names} look like parts, not classes; name them train and test, classes inside")


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder by their names; hidden ones are none."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def is_picture(path: Path) -> bool:
    """Whether a file is a picture, by its name."""
    return path.suffix.lower() in PICTURES and path.is_file()


def by_class(folder: Path) -> dict[str, list[Path]]:
    """The pictures in each folder of a class, wherever in it they lie; hidden ones are none. Raises DataError."""
    found = {}
    for inside in subfolders(folder):
        # Not ._7.png, which macOS leaves beside 7.png, nor what Jupyter keeps in .ipynb_checkpoints.
        there = (path for path in inside.rglob("*") if "/." not in path.relative_to(folder).as_posix())
        found[inside.name] = list(filter(is_picture, there))
        if not found[inside.name]:
            raise DataError(f"{inside}: no picture in it ({', '.join(PICTURES)})")
    if len(found) < 2:
        raise DataError(f"{folder}: {len(found)} folders with pictures, at least two classes need one each")
    return found


def hashed(path: Path, folder: Path) -> str:
    """A hash of a picture's name inside the folder: an order that has nothing to do with what the pictures show."""
    return hashlib.sha256(path.relative_to(folder).as_posix().encode(errors="surrogateescape")).hexdigest()


def size(path: Path) -> int:
    """The shorter side of a picture, in pixels."""
    with Image.open(path) as opened:
        return min(opened.size)


def digest_of(arrays: Iterable[np.ndarray]) -> str:
    """16 hex digits over the content of arrays, as download.DIGEST has them."""
    parts = [hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() for array in arrays]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]
