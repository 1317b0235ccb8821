"""What several tests need: the real images, and a place for records that is not the repository's."""

import os

import pytest

import made
from lib import machine, records
from lib.data import download
from lib.data.datasets import Dataset
from lib.params import Params

# A make that a test starts is no part of the one that has started the tests: it would say that it enters a folder.
# And what the tests write, and read of records, is no matter of the folders that a user has named.
for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "CONVMIXER_REPORTS", "CONVMIXER_VENV", "CONVMIXER_BF16"):
    os.environ.pop(name, None)
if "CONVMIXER_DATA" in os.environ:  # for a copy of the repository it would be another place
    os.environ["CONVMIXER_DATA"] = str(download.data_folder())

# A network that trains in a second: it learns little, but through every part of the code.
TINY = {
    "kernel": 3, "patch": 8, "dim": 8, "depth": 1, "epochs": 2, "train_size": 320, "val_size": 200, "lr": 0.01,
    "study": "test", "device": "cpu",
}  # fmt: skip


@pytest.fixture(scope="session")
def cifar():
    """CIFAR-10, fetched if it is not there: `make test` does so beforehand."""
    return download.cifar10()


@pytest.fixture(scope="session")
def data(cifar):
    """The same as a run has it."""
    return Dataset(**cifar)


@pytest.fixture
def reports(tmp_path, monkeypatch):
    """An empty folder in the place of reports/."""
    monkeypatch.setattr(records, "REPORTS", tmp_path / "reports")
    return tmp_path / "reports"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A folder with this repository's params/ and no records, in the place of the repository."""
    return made.place(monkeypatch, tmp_path)


@pytest.fixture
def tiny():
    """Makes the parameters of a run of a second."""
    return lambda **values: Params.of(**{**TINY, **values})


@pytest.fixture
def devices():
    """What was found out about devices is found out anew in this test, and again after it."""
    for clear in (machine.best_device.cache_clear, machine.device_fault.cache_clear):
        clear()
    yield
    for clear in (machine.best_device.cache_clear, machine.device_fault.cache_clear):
        clear()
