"""Other data than CIFAR-10: CIFAR-100's archive and folders of pictures, from the files to a record and its use."""

import hashlib
import pickle
import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR100, ImageFolder

from lib import explore, predict, records, train, verify
from lib.data import datasets, download
from lib.data.datasets import Dataset, load, normalisation_of, of_folder, split
from lib.data.download import DataError
from lib.data.picture import PictureError, picture
from lib.params import ParameterError, Params
from lib.records import MEAN, STD
from lib.runs import run
from lib.train import fit

CLASSES = ("cat", "dog", "owl")


def draw(path, seed, size=(40, 36)):
    """A picture of noise around a colour that is its own."""
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 60, (size[1], size[0], 3)) + random.integers(0, 190, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)


@pytest.fixture
def pets(tmp_path):
    """Three classes of 20, 30 and 40 pictures, without parts."""
    for y, name in enumerate(CLASSES):
        for i in range(20 + 10 * y):
            draw(tmp_path / "pets" / name / f"{i:02}.png", 100 * y + i)
    return tmp_path / "pets"


@pytest.fixture
def parts(tmp_path):
    """Two classes, train beside test."""
    for part, n in (("train", 8), ("test", 3)):
        for y, name in enumerate(CLASSES[:2]):
            for i in range(n):
                draw(tmp_path / "parts" / part / name / f"{part}{i}.jpg", 1000 * n + 10 * y + i)
    return tmp_path / "parts"


@pytest.fixture
def of_pets(pets, tiny):
    """Makes the parameters of a run of a second on the pets."""
    return lambda **values: tiny(**{"dataset": f"folder:{pets}", "train_size": 0, "val_size": 12, **values})


def silent(text):
    pass


# ---- A folder of pictures ----


def test_a_folder_without_parts_is_split_by_its_names(pets):
    data = of_folder(pets)
    assert data.classes == CLASSES
    assert np.bincount(data.train_labels).tolist() == [16, 24, 32]
    assert np.bincount(data.test_labels).tolist() == [4, 6, 8]
    assert data.train_images.dtype == np.uint8 and data.train_images.shape == (72, 32, 32, 3)
    # Which those are follows from the names alone: the fifth of a class with the smallest hashes.
    cats = sorted(pets.glob("cat/*"), key=lambda path: hashlib.sha256(f"cat/{path.name}".encode()).hexdigest())
    found = data.test_images[data.test_labels == 0]
    assert {image.tobytes() for image in found} == {picture(path).tobytes() for path in cats[:4]}
    # And the first images are not all of one class.
    assert len(set(data.train_labels[:12])) == 3


def test_a_folder_with_parts_is_torchvisions_layout(parts):
    data = of_folder(parts)
    for part, images, labels in (
        ("train", data.train_images, data.train_labels),
        ("test", data.test_images, data.test_labels),
    ):
        theirs = ImageFolder(parts / part)
        assert list(data.classes) == theirs.classes
        expected = sorted((picture(path).tobytes(), label) for path, label in theirs.samples)
        assert sorted((image.tobytes(), int(label)) for image, label in zip(images, labels, strict=True)) == expected


def test_the_digest_is_of_the_content(pets, tmp_path):
    before = of_folder(pets).digest
    assert of_folder(shutil.copytree(pets, tmp_path / "copy")).digest == before
    image = np.asarray(Image.open(pets / "owl" / "07.png")).copy()
    image[20, 20, 1] ^= 255
    Image.fromarray(image).save(pets / "owl" / "07.png")
    changed = of_folder(pets).digest
    (pets / "owl").rename(pets / "owls")
    assert len({before, changed, of_folder(pets).digest}) == 3


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda f: shutil.rmtree(f), "pets: no such folder"),
        (lambda f: [shutil.rmtree(f / name) for name in ("cat", "dog")], "pets: 1 folders with pictures, at least two"),
        (lambda f: [path.unlink() for path in f.glob("dog/*")], "pets/dog: no picture in it (.jpg, "),
        (lambda f: [path.unlink() for path in f.glob("dog/[!0]*")] + [path.unlink() for path in f.glob("dog/0[1-9]*")],
         "pets/dog: one picture, but a class needs one to train with and one for the test"),
        (lambda f: (f / "cat" / "03.png").write_bytes(b"no picture"), "pets/cat/03.png: not a picture"),
        (lambda f: (f / "cat").rename(f / "train"), "pets: holds train but no test"),
    ],
    ids=["no folder", "one class", "an empty class", "one picture", "no picture", "half of the parts"],
)  # fmt: skip
def test_what_is_wrong_with_a_folder_is_one_line_that_names_it(pets, of_pets, change, words):
    change(pets)
    with pytest.raises((DataError, PictureError)) as refusal:
        load(of_pets())
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_folder_that_may_not_be_read_is_one_line(pets, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(type(pets), "iterdir", refuse)
    with pytest.raises(DataError, match=f"{pets}: Permission denied"):
        of_folder(pets)


def test_classes_that_differ_between_the_parts_are_named(parts):
    (parts / "test" / "dog").rename(parts / "test" / "fox")
    with pytest.raises(DataError, match=r"parts: train has a class that test has not: dog$"):
        of_folder(parts)
    shutil.rmtree(parts / "train" / "dog")
    draw(parts / "train" / "cow" / "1.png", 0)
    (parts / "test" / "fox").rename(parts / "test" / "cow")
    draw(parts / "test" / "fox" / "1.png", 0)
    with pytest.raises(DataError, match=r"parts: test has a class that train has not: fox$"):
        of_folder(parts)


@pytest.mark.parametrize(
    "train, test, classes",
    [
        ("Train", "Test", CLASSES),
        ("training", "testing", CLASSES),
        ("seg_train", "Validation", CLASSES),
        ("TRAIN", "TEST", [""]),  # the pictures of all classes in one folder
    ],
)
def test_parts_by_other_names_do_not_become_classes(tmp_path, train, test, classes):
    for part in (train, test):
        for name in classes:
            draw(tmp_path / "own" / part / name / "1.png", 0)
    if (tmp_path / "own" / "train").exists():
        pytest.skip("to this disk Train is train")
    with pytest.raises(DataError, match=f"own: {train} and {test} look like parts, not classes; name them "):
        of_folder(tmp_path / "own")


def test_a_class_may_be_called_much_like_a_part_and_may_have_folders_inside(pets):
    (pets / "cat").rename(pets / "trainbearer")
    (pets / "dog").rename(pets / "testudo")
    for path in sorted(pets.glob("*/0*.png")):
        (path.parent / "of 2019").mkdir(exist_ok=True)
        path.rename(path.parent / "of 2019" / path.name)
    assert of_folder(pets).classes == ("owl", "testudo", "trainbearer")


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_a_validation_part_that_is_not_used_is_said(parts, capsys, name):
    before = of_folder(parts).digest
    assert not capsys.readouterr().err
    shutil.copytree(parts / "test", parts / name)
    assert of_folder(parts).digest == before
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{parts / name}: its pictures are not used, the validation split is taken from train (val_size)"


def test_what_is_no_picture_by_its_name_is_passed_over(pets):
    before = of_folder(pets).digest
    (pets / "cat" / "notes.txt").write_text("of the cats")
    (pets / "cat" / "._07.png").write_bytes(b"what macOS leaves beside a file")
    shutil.copytree(pets / "dog", pets / "cat" / ".ipynb_checkpoints")
    (pets / ".cache").mkdir()
    (pets / "README").write_text("pets")
    assert of_folder(pets).digest == before


def test_smaller_pictures_are_enlarged_and_that_is_said(pets, capsys):
    draw(pets / "cat" / "00.png", 1, size=(31, 50))
    data = of_folder(pets)
    assert data.train_images.shape[1:] == (32, 32, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"{pets}: 1 pictures of less than 32 x 32 are enlarged, such as {pets / 'cat' / '00.png'}"
    (pets / "cat" / "00.png").unlink()
    of_folder(pets)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "values, words",
    [
        ({"val_size": 5000}, "val_size=5000: there are 72 training images in folder:/.*/pets, give less"),
        ({"val_size": 70, "batch_size": 2}, "val_size=70: of 72 images it leaves none of some class.*folder:/.*/pets"),
        ({"val_size": 12, "train_size": 61}, "train_size=61: 60 training images are left beside val_size=12"),
        ({"val_size": 12, "batch_size": 61}, "batch_size=61: there are only 60 training images"),
    ],
)
def test_too_few_pictures_for_a_run_are_said(of_pets, values, words):
    with pytest.raises(ParameterError, match=words):
        load(of_pets(batch_size=16).replace(**values))
    if "of 72 images" not in words:
        with pytest.raises(ParameterError, match=words):  # before anything is read, too
            datasets.sizes(of_pets(batch_size=16).replace(**values))


def test_the_number_of_images_is_known_without_reading_them(pets, of_pets):
    assert datasets.sizes(of_pets(batch_size=16)) == (60, 18)
    (pets / "cat" / "00.png").write_bytes(b"not read")
    assert datasets.sizes(of_pets(batch_size=16, train_size=30)) == (30, 18)
    assert datasets.sizes(Params()) == (45_000, 10_000)
    assert datasets.sizes(Params(dataset="cifar100", train_size=640)) == (640, 10_000)


# ---- The split and the normalisation ----


def test_the_split_of_unequal_classes_keeps_their_shares():
    labels = np.repeat([0, 1, 2], [100, 200, 700])
    train_rows, val = split(labels, 100, 0, seed=1)
    assert np.bincount(labels[val]).tolist() == [10, 20, 70]
    assert sorted([*train_rows, *val]) == list(range(1000))
    assert np.bincount(labels[split(labels, 100, 50, seed=1)[0]]).tolist() == [5, 10, 35]


def test_the_split_of_equal_classes_is_what_it_always_was(cifar):
    """A row an image of each class, as it was written before there were others."""
    labels = cifar["train_labels"]
    random = np.random.default_rng([3, 200])
    rows = np.stack([random.permutation(np.flatnonzero(labels == c)) for c in range(10)], axis=1)
    train_rows, val = split(labels, 200, 321, seed=3)
    assert np.array_equal(val, np.sort(rows[:20].ravel()))
    assert np.array_equal(train_rows, np.sort(rows[20:].ravel()[:321]))


def test_images_are_normalised_by_their_own_mean_and_deviation(cifar):
    images = cifar["train_images"][:500]
    for std, axes in (("pixels", None), ("images", (1, 2))):
        mean, deviation = normalisation_of(images, std)
        np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), atol=1e-8)
        expected = (images / 255).std((0, 1, 2)) if axes is None else (images / 255).std(axes).mean(0)
        np.testing.assert_allclose(deviation, expected, atol=1e-8)
    assert min(normalisation_of(np.zeros((2, 32, 32, 3), np.uint8), "pixels").std) > 0


def test_the_normalisation_of_cifar_10_is_the_published_one(cifar):
    for std in STD:
        data = load(Params(std=std))
        assert data.normalisation == (MEAN, STD[std]) and data.digest == download.DIGEST
    np.testing.assert_allclose(normalisation_of(cifar["train_images"], "pixels"), (MEAN, STD["pixels"]), atol=2e-8)


# ---- A run ----


def test_a_run_on_a_folder_and_what_its_record_says(reports, pets, of_pets):
    p = of_pets(label_smoothing=0.1, batch_size=16)
    assert "about " in run.announce(p)
    record = run.run(p, silent)
    folder = records.run_folder(p)
    data = load(p)
    assert "-datasetpets-" in folder.name
    assert records.classes(record) == CLASSES == tuple(record["per_class_acc"])
    assert (record["train_images"], record["val_images"], record["test_images"]) == (60, 12, 18)
    assert record["data_digest"] == data.digest and records.normalisation(record) == data.normalisation
    arrays = records.read_arrays(record)
    assert arrays["logits"].shape == (18, 3) and arrays["labels"].dtype == np.uint8
    assert explore.load_weights(folder)["head.weight"].shape == (3, 8)
    # The network can be asked and checked, and neither needs to be told which classes it has.
    shutil.move(pets, pets.with_name("gone"))
    said = predict.predict(pets.with_name("gone") / "owl" / "01.png", str(folder))
    assert sorted(said.index) == sorted(CLASSES) and said.sum() == pytest.approx(100, abs=1e-3)
    assert "% of the test images of pets" in predict.described(record)
    shutil.move(pets.with_name("gone"), pets)
    verify.images.cache_clear()
    assert verify.weights(folder)[0]
    verify.images.cache_clear()
    assert run.run(p, silent) == record


def test_a_checkpoint_of_other_pictures_is_refused(reports, pets, of_pets):
    def stop(text):
        if "epoch 1/" in text:
            raise KeyboardInterrupt

    p = of_pets(batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        run.run(p, stop)
    before = of_folder(pets).digest
    kept = (pets / "cat" / "05.png").read_bytes()
    draw(pets / "cat" / "05.png", 999)
    after = of_folder(pets).digest
    with pytest.raises(records.RecordError, match=rf"begun with other images than .* \({before} -> {after}\)"):
        run.run(p, silent)
    (pets / "cat" / "05.png").write_bytes(kept)
    assert run.run(p, silent)["resumed"] == 1


def test_another_data_set_is_another_run(of_pets, tiny):
    prints = {p.fingerprint for p in (tiny(), tiny(dataset="cifar100"), of_pets(), of_pets(dataset="folder:other"))}
    assert len(prints) == 4
    made = {"fingerprint": tiny().fingerprint, "numerics": 1, "params": tiny().computed()}
    assert tiny(dataset="cifar100").unlike(made) == "dataset: cifar10 -> cifar100"


@pytest.mark.parametrize("arch", ["convmixer", "cnn", "vit"])
@pytest.mark.parametrize("classes", [3, 100])
def test_every_network_has_as_many_outputs_as_there_are_classes(tmp_path, tiny, arch, classes):
    random = np.random.default_rng(0)
    n = 4 * classes
    images = random.integers(0, 256, (n, 32, 32, 3), np.uint8)
    labels = np.arange(n, dtype=np.uint8) % classes
    data = Dataset(images, labels, images[:classes], labels[:classes], tuple(map(str, range(classes))))
    p = tiny(arch=arch, dim=16, epochs=1, train_size=0, val_size=0, select="last", batch_size=4)
    result = fit(p, data, tmp_path, silent)
    assert result.test["logits"].shape == (classes, classes)
    if arch == "convmixer":
        assert result.native is True or "compiler" in result.native
        plain = train.build(p, torch.device("cpu"), classes)[0]
        plain.load_state_dict(result.state.model.state_dict())
        again = train.evaluate(p, plain, plain, data.test_images, data.test_labels, data.normalisation)
        np.testing.assert_allclose(again["logits"], result.test["logits"], atol=2e-2)


# ---- CIFAR-100 ----


@pytest.fixture
def small_cifar100(tmp_path, monkeypatch):
    """An archive of CIFAR-100's form with 200 training and 100 test images; arrays, and where it lies."""
    random = np.random.default_rng(0)
    names = [f"class {i}" for i in range(100)]
    folder, arrays, sums = tmp_path / "source" / CIFAR100.base_folder, {}, {}
    folder.mkdir(parents=True)
    for part, n in (("train", 200), ("test", 100)):
        rows, labels = random.integers(0, 256, (n, 3072), np.uint8), np.arange(n) % 100
        (folder / part).write_bytes(pickle.dumps({"data": rows, "fine_labels": labels.tolist(), "coarse_labels": []}))
        arrays[part] = rows.reshape(n, 3, 32, 32).transpose(0, 2, 3, 1), labels
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": names}))
    sums = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    archive = tmp_path / "source" / CIFAR100.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, CIFAR100.base_folder)
    monkeypatch.setattr(CIFAR100, "train_list", [["train", sums["train"]]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", sums["test"]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": sums["meta"]})
    monkeypatch.setattr(CIFAR100, "tgz_md5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(CIFAR100, "url", archive.as_uri())
    return arrays, archive


def is_it(data, arrays):
    assert data.classes == tuple(f"class {i}" for i in range(100))
    found = (data.train_images, data.train_labels, data.test_images, data.test_labels)
    return all(np.array_equal(a, b) for a, b in zip(found, arrays["train"] + arrays["test"], strict=True))


def test_cifar_100_is_fetched_once_and_has_its_fine_classes(tmp_path, small_cifar100, monkeypatch):
    arrays, _ = small_cifar100
    data = datasets.cifar100(str(tmp_path / "data"))
    assert is_it(data, arrays) and data.train_labels.dtype == np.uint8
    monkeypatch.setattr(CIFAR100, "url", "file:///no/such/file")
    assert datasets.cifar100(str(tmp_path / "data")).digest == data.digest
    assert sorted(path.name for path in (tmp_path / "data").iterdir() if path.name[0] != ".") == [
        CIFAR100.base_folder, CIFAR100.filename,
    ]  # fmt: skip


def test_cifar_100_goes_on_with_what_has_arrived(tmp_path, small_cifar100):
    arrays, _ = small_cifar100
    (tmp_path / "data").mkdir()
    part = tmp_path / "data" / f"{CIFAR100.filename}{download.UNFINISHED}"
    part.write_bytes(b"not its beginning")
    assert is_it(datasets.cifar100(str(tmp_path / "data")), arrays) and not part.exists()


def test_cifar_100_that_is_there_needs_no_network(tmp_path, small_cifar100, monkeypatch):
    arrays, archive = small_cifar100
    monkeypatch.setattr(CIFAR100, "url", "file:///no/such/file")
    for source in (archive, archive.with_name(CIFAR100.base_folder)):
        folder = tmp_path / f"with {source.name}"
        folder.mkdir()
        (shutil.copytree if source.is_dir() else shutil.copy)(source, folder / source.name)
        assert is_it(datasets.cifar100(str(folder)), arrays)


def test_cifar_100_that_cannot_be_had_is_one_line(tmp_path, small_cifar100, monkeypatch, capsys):
    archive = small_cifar100[1]
    monkeypatch.setattr(download, "TRIES", 1)
    monkeypatch.setattr(CIFAR100, "url", "file:///no/such/file")
    with pytest.raises(DataError, match=f"Or place {CIFAR100.filename}, from the page of its authors, in ") as refusal:
        datasets.cifar100(str(tmp_path / "data"))
    assert "\n" not in str(refusal.value)
    (tmp_path / "data" / CIFAR100.filename).write_bytes(archive.read_bytes()[:-9])
    with pytest.raises(DataError, match="Or place"):
        datasets.cifar100(str(tmp_path / "data"))
    assert f"{CIFAR100.filename}: checksum is wrong" in capsys.readouterr().err
    monkeypatch.setattr(CIFAR100, "url", archive.as_uri())
    datasets.cifar100(str(tmp_path / "data"))  # fetched in place of the damaged one
    assert (tmp_path / "data" / CIFAR100.filename).read_bytes() == archive.read_bytes()
    (tmp_path / "data" / CIFAR100.base_folder / "test").write_bytes(b"torn")  # the archive is still there
    datasets.cifar100(str(tmp_path / "data"))


def test_a_run_on_cifar_100(tmp_path, reports, small_cifar100, tiny):
    p = tiny(dataset="cifar100", data_dir=str(tmp_path / "data"), train_size=100, val_size=100, batch_size=20)
    record = run.run(p, silent)
    assert len(record["per_class_acc"]) == 100 and record["data_digest"] != download.DIGEST
    assert records.read_arrays(record)["logits"].shape == (100, 100)
