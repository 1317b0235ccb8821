"""Fetching CIFAR-10: every format gives the same bytes, damage is named, two cold processes do each other no harm."""

import errno
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from lib.data import download
from lib.data.download import COPY, NPM_FILE, OFFICIAL, UNPACKED, DataError
from lib.records import MEAN, STD
from lib.study import ROOT


@pytest.fixture
def small(cifar, monkeypatch):
    """A CIFAR-10 of 100 training and 20 test images, with its own checksums: every path at a thousandth of the size."""
    sizes = {"train": 100, "test": 20}
    arrays = {name: array[: sizes[name.split("_")[0]]].copy() for name, array in cifar.items()}
    digests = {
        name: (array.shape, download.hashlib.sha256(array.tobytes()).hexdigest()) for name, array in arrays.items()
    }
    monkeypatch.setattr(download, "ARRAYS", digests)
    return arrays


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(np.array_equal(ours[name], theirs[name]) and ours[name].dtype == np.uint8 for name in theirs)


def add(archive, name, content):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def make_npm(path, arrays, extra=()):
    """The npm package's archive, of the same form."""
    with tarfile.open(path, "w:gz") as archive:
        for i, part in enumerate(np.split(arrays["train_images"], 5), start=1):
            add(archive, f"package/data_batch_{i}.png", png(part.reshape(len(part), 1024, 3)))
        add(archive, "package/test_batch.png", png(arrays["test_images"].reshape(-1, 1024, 3)))
        for split in ("train", "test"):
            labels = json.dumps(arrays[f"{split}_labels"].tolist()).encode()
            add(archive, f"package/{split}_lables.json", labels)
        for name in extra:
            add(archive, name, b"x")


def make_official(path, arrays):
    """The authors' archive, of the same form: pickled batches of (N, 3072) rows, channels first."""

    def batch(images, labels):
        return pickle.dumps({b"data": images.transpose(0, 3, 1, 2).reshape(-1, 3072), b"labels": labels.tolist()})

    with tarfile.open(path, "w:gz") as archive:
        for i in range(5):
            part = slice(20 * i, 20 * i + 20)
            content = batch(arrays["train_images"][part], arrays["train_labels"][part])
            add(archive, f"cifar-10-batches-py/data_batch_{i + 1}", content)
        add(archive, "cifar-10-batches-py/test_batch", batch(arrays["test_images"], arrays["test_labels"]))


def make_parquet(folder, arrays):
    """The hub's two files, of the same form."""
    paths = []
    for split in ("train", "test"):
        images = [{"bytes": png(image), "path": None} for image in arrays[f"{split}_images"]]
        paths.append(folder / f"{split}.parquet")
        pd.DataFrame({"img": images, "label": arrays[f"{split}_labels"].astype(np.int64)}).to_parquet(paths[-1])
    return paths


def accept(monkeypatch, path):
    """Makes the file at `path` the one with the right checksum."""
    content = path.read_bytes()
    monkeypatch.setattr(download, "NPM_SHA512", download.hashlib.sha512(content).hexdigest())
    monkeypatch.setattr(download, "OFFICIAL_SHA256", download.hashlib.sha256(content).hexdigest())


def only(monkeypatch, **sources):
    monkeypatch.setattr(download, "SOURCES", {name.replace("_", " "): source for name, source in sources.items()})


def test_the_real_images_have_the_published_statistics(cifar):
    pixels = cifar["train_images"].reshape(-1, 3) / 255
    np.testing.assert_allclose(pixels.mean(0), MEAN, atol=5e-9)
    np.testing.assert_allclose(pixels.std(0), STD["pixels"], atol=5e-9)
    inside = (cifar["train_images"] / 255).std((1, 2)).mean(0)
    np.testing.assert_allclose(inside, STD["images"], atol=2e-4)  # as it circulates, with four digits
    assert np.bincount(cifar["test_labels"]).tolist() == [1000] * 10


def unpack(folder, arrays):
    """The authors' batches as torchvision leaves them: unpacked, with a file that is not needed."""
    make_official(folder / "made", arrays)
    with tarfile.open(folder / "made") as archive:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # not in Debian 12's Python
        archive.extractall(folder, **safely)
    (folder / "made").unlink()
    (folder / UNPACKED / "batches.meta").write_bytes(b"names")
    return folder / UNPACKED


def untouched(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("how", ["inside", "a link", "the folder itself", "beside a damaged archive"])
def test_what_torchvision_has_unpacked_is_used(tmp_path, monkeypatch, small, how):
    only(monkeypatch, placed=download.from_placed)
    there = unpack(tmp_path, small)
    folder = tmp_path
    if how == "a link":
        folder = tmp_path / "data"
        folder.mkdir()
        (folder / UNPACKED).symlink_to(there)
    elif how == "the folder itself":
        folder = there
    elif how == "beside a damaged archive":
        (tmp_path / OFFICIAL).write_bytes(b"half of it")
    assert same(download.cifar10(str(folder)), small)
    assert (folder / COPY).exists()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("make", [unpack, lambda folder, arrays: make_npm(folder / NPM_FILE, arrays)])
def test_a_folder_with_the_data_needs_no_room_and_no_permission(tmp_path, monkeypatch, small, make, number):
    def refuse(*_, **__):
        raise OSError(number, "no room")

    make(tmp_path, small)
    if (tmp_path / NPM_FILE).exists():
        accept(monkeypatch, tmp_path / NPM_FILE)
    before = untouched(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(download, "lock", refuse)
        assert same(download.cifar10(str(tmp_path)), small)
    assert untouched(tmp_path) == before
    monkeypatch.setattr(np, "savez", refuse)  # the lock can be had, but there is no room for the copy
    assert same(download.cifar10(str(tmp_path)), small)
    assert untouched(tmp_path) == {*before, ".fetch.lock"}


def test_a_read_only_folder_without_the_data_is_one_line(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(download, "lock", refuse)
    with pytest.raises(
        DataError, match=r"Read-only file system; .* give another data_dir or CONVMIXER_DATA"
    ) as refusal:
        download.cifar10(str(tmp_path))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("damage", ["a file missing", "truncated", "wrong labels", "no pickle", "other names"])
def test_unpacked_batches_that_are_damaged_are_named(tmp_path, monkeypatch, small, damage):
    only(monkeypatch, placed=download.from_placed)
    batch = unpack(tmp_path, small) / "data_batch_3"
    if damage == "a file missing":
        batch.unlink()
    elif damage == "truncated":
        batch.write_bytes(truncated(batch.read_bytes()))
    elif damage == "no pickle":
        batch.write_bytes(web_page(b""))
    else:
        values = pickle.loads(batch.read_bytes())
        names = {"other names": {"data": 1}, "wrong labels": {**values, b"labels": [0] * 20}}
        batch.write_bytes(pickle.dumps(names[damage]))
    with pytest.raises(DataError, match=f"{tmp_path}/{UNPACKED}: "):
        download.cifar10(str(tmp_path))


class Trap:
    def __reduce__(self):
        return (print, ("executed",))


def test_a_pickle_that_would_run_code_is_refused_and_not_executed(tmp_path, monkeypatch, capsys, small):
    only(monkeypatch, placed=download.from_placed)
    (unpack(tmp_path, small) / "test_batch").write_bytes(pickle.dumps({b"data": Trap(), b"labels": []}))
    with pytest.raises(DataError, match=f"{UNPACKED}: holds builtins.print, which is no array"):
        download.cifar10(str(tmp_path))
    assert "executed" not in capsys.readouterr().out


def test_batches_that_python_2_has_pickled_are_read(tmp_path):
    """As the authors' are: texts of bytes, and the array's memory as such a text."""
    start = b"\x80\x02}q\x01U\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"(K\x01K\x02K\x03\x86" + dtype + b"\x89U\x06\x00\x01\xfd\xfe\xff\x80tb"
    values = download._ArraysOnly(io.BytesIO(start + array + b"s."), encoding="bytes").load()
    assert values[b"data"].tolist() == [[0, 1, 253], [254, 255, 128]] and values[b"data"].dtype == np.uint8


def test_where_the_data_lies_is_the_runs_or_the_environments_to_say(tmp_path, monkeypatch):
    monkeypatch.delenv("CONVMIXER_DATA", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.data_folder() == ROOT / "data"
    for value, folder in (("", ROOT / "data"), ("near", ROOT / "near"), ("/far", "/far"), ("~/x", tmp_path / "x")):
        monkeypatch.setenv("CONVMIXER_DATA", value)
        assert download.data_folder() == Path(folder)
    monkeypatch.chdir(tmp_path)  # wherever one stands
    for value, folder in (("near", ROOT / "near"), (str(tmp_path), tmp_path), ("~/x", tmp_path / "x")):
        assert download.data_folder(value) == Path(folder)


def test_where_the_records_lie_is_read_in_the_same_way(tmp_path):
    code = "from lib import records; print(records.REPORTS)"
    for value, folder in (("", ROOT / "reports"), ("near", ROOT / "near"), ("/far", "/far"), ("~/x", tmp_path / "x")):
        environment = {**os.environ, "HOME": str(tmp_path), "CONVMIXER_REPORTS": value}
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.stdout == f"{folder}\n", done.stderr


@pytest.mark.parametrize("name, make", [(NPM_FILE, make_npm), (OFFICIAL, make_official)])
def test_a_placed_archive_is_read_and_kept(tmp_path, monkeypatch, small, name, make):
    make(tmp_path / name, small)
    accept(monkeypatch, tmp_path / name)
    only(monkeypatch, a_placed_archive=download.from_placed)
    assert same(download.cifar10(str(tmp_path)), small)
    (tmp_path / name).unlink()
    assert same(download.cifar10(str(tmp_path)), small)  # from the verified copy


def test_of_two_placed_archives_one_may_be_damaged(tmp_path, monkeypatch, small):
    make_npm(tmp_path / NPM_FILE, small)
    accept(monkeypatch, tmp_path / NPM_FILE)
    (tmp_path / OFFICIAL).write_bytes(b"half of it")
    only(monkeypatch, a_placed_archive=download.from_placed)
    assert same(download.cifar10(str(tmp_path)), small)


def test_the_hubs_files_are_read(tmp_path, monkeypatch, small):
    import huggingface_hub

    paths = dict(zip(download.HUB_FILES.values(), make_parquet(tmp_path, small), strict=True))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda repository, name, **_: str(paths[name]))
    only(monkeypatch, the_hub=download.from_hub)
    assert same(download.cifar10(str(tmp_path / "data")), small)


def truncated(content):
    return content[: len(content) // 2]


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def web_page(content):
    return b"<!DOCTYPE html><title>Sign in</title>"


@pytest.mark.parametrize("damage", [truncated, flipped, web_page])
@pytest.mark.parametrize("name, make", [(NPM_FILE, make_npm), (OFFICIAL, make_official)])
def test_a_damaged_archive_is_named_and_the_next_source_is_tried(tmp_path, monkeypatch, small, name, make, damage):
    path = tmp_path / name
    make(path, small)
    accept(monkeypatch, path)
    path.write_bytes(damage(path.read_bytes()))
    only(monkeypatch, placed=download.from_placed)
    with pytest.raises(DataError) as refusal:
        download.cifar10(str(tmp_path))
    assert f"{path}: checksum is wrong" in str(refusal.value)
    assert ("it is a web page" in str(refusal.value)) == (damage is web_page)
    only(monkeypatch, placed=download.from_placed, another=lambda folder: small)
    assert same(download.cifar10(str(tmp_path)), small)


@pytest.mark.parametrize("damage", [truncated, flipped, web_page])
def test_a_damaged_copy_is_named_and_fetched_again(tmp_path, monkeypatch, capsys, small, damage):
    only(monkeypatch, another=lambda folder: small)
    download.cifar10(str(tmp_path))
    copy = tmp_path / COPY
    copy.write_bytes(damage(copy.read_bytes()))
    assert same(download.cifar10(str(tmp_path)), small)
    assert f"{copy}: " in capsys.readouterr().err


def test_what_is_kept_is_read_without_fetching_anything(tmp_path, monkeypatch, small):
    monkeypatch.setattr(download, "SOURCES", {})
    assert download.kept(str(tmp_path)) is None and not list(tmp_path.iterdir())
    np.savez(tmp_path / COPY, **small)
    assert same(download.kept(str(tmp_path)), small)
    (tmp_path / COPY).write_bytes((tmp_path / COPY).read_bytes()[:-999])
    assert download.kept(str(tmp_path)) is None


def test_wrong_images_from_a_source_are_never_kept(tmp_path, monkeypatch, small):
    wrong = {**small, "test_labels": small["test_labels"][::-1].copy()}
    only(monkeypatch, wrong=lambda folder: wrong)
    with pytest.raises(DataError, match="wrong: checksum of test_labels is wrong"):
        download.cifar10(str(tmp_path))
    assert not (tmp_path / COPY).exists()


def test_without_any_source_the_message_says_which_file_to_put_where(tmp_path, monkeypatch):
    def broken(folder):
        raise DataError("no route to host")

    only(monkeypatch, placed=download.from_placed, npm=broken, hub=broken, authors=broken)
    with pytest.raises(DataError) as refusal:
        download.cifar10(str(tmp_path))
    for word in (OFFICIAL, NPM_FILE, str(tmp_path), "npm: no route to host", "authors: no route to host"):
        assert word in str(refusal.value)


def test_a_full_disk_is_said_as_such(tmp_path, monkeypatch, small):
    def full(folder):
        raise OSError(28, "No space left on device")

    only(monkeypatch, first=full, second=lambda folder: small)
    with pytest.raises(DataError, match="No space left on device; about 400 MB"):
        download.cifar10(str(tmp_path))


COLD = """
import sys, time
from pathlib import Path
import numpy as np
from lib.data import download

folder, source = Path(sys.argv[1]), np.load(sys.argv[2])
arrays = {name: source[name] for name in download.ARRAYS}
download.ARRAYS = {n: (a.shape, download.hashlib.sha256(a.tobytes()).hexdigest()) for n, a in arrays.items()}

def slow(folder):
    with open(folder / "fetches", "a") as file:
        file.write("x")
    time.sleep(1)
    return arrays

download.SOURCES = {"slow": slow}
assert len(download.cifar10(str(folder))["test_labels"]) == 20
"""


def test_of_two_cold_processes_one_fetches_and_both_succeed(tmp_path, small):
    np.savez(tmp_path / "source.npz", **small)
    command = [sys.executable, "-c", COLD, str(tmp_path / "data"), str(tmp_path / "source.npz")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=60)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert sum("another process is fetching" in text for text in told) == 1
    assert (tmp_path / "data" / "fetches").read_text() == "x"


def test_an_archive_that_leaves_its_folder_writes_nothing(tmp_path, monkeypatch, small):
    """It is read where it lies: nothing of it is unpacked to the disk."""
    path = tmp_path / "in" / NPM_FILE
    path.parent.mkdir()
    make_npm(path, small, extra=["package/../../evil", "/tmp/evil-of-convmixer"])
    accept(monkeypatch, path)
    for name, array in download.read_npm(path).items():
        np.testing.assert_array_equal(array, small[name])
    assert [found.name for found in tmp_path.rglob("*") if found.is_file()] == [NPM_FILE]
    assert not Path("/tmp/evil-of-convmixer").exists()
