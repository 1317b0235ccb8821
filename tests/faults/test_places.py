"""Real disks and real containers: noexec, read-only, a quota of processor time."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_other_machines import RUN, home, make  # noqa: F401

from lib import records
from lib.study import ROOT

NATIVE = """
import sys
from pathlib import Path
from lib.native import compiler, layers

compiler.ROOT = Path(sys.argv[1])
assert layers.compiled()
print(layers.compiled()._name)
"""


@pytest.mark.fault(45, "a cache folder on a disk that is mounted noexec")
def test_native_layers_on_a_disk_from_which_nothing_is_executed(tmp_path, disk, seen):
    cache = disk(20)
    subprocess.run(["mount", "-o", "remount,noexec", cache], check=True)
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "HOME": "/proc/none"}
    command = [sys.executable, "-c", NATIVE, str(tmp_path / "repository")]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "slower" not in done.stderr, done.stderr
    assert list(cache.rglob("*.so"))  # it was tried there
    assert done.stdout.startswith(f"{tmp_path}/repository/.cache/")
    seen("compiled again into .cache of the repository, and used from there")


@pytest.mark.fault(
    45, "the whole checkout read-only, no home, no cache: make runs and make report with three variables"
)
def test_a_read_only_checkout_trains_and_reports(tmp_path, home, disk, seen):  # noqa: F811
    (home.root / "data").unlink()
    packages = tmp_path / "packages"
    shutil.move(home.root / ".venv", packages)
    papermill = packages / "bin" / "papermill"
    if papermill.exists():
        papermill.write_text(papermill.read_text().replace(str(home.root / ".venv"), str(packages)))
    disk(1, "reports of this test")  # skips where nothing can be mounted
    bind = ["mount", "--bind", home.root, home.root]
    subprocess.run(bind, check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home.root], check=True)
        without = make(home, "runs", "STUDY=one", CONVMIXER_VENV=str(packages), CONVMIXER_DATA=str(ROOT / "data"))
        assert without.returncode and "Traceback" not in without.stdout + without.stderr
        assert "Read-only file system" in without.stderr
        places = {"REPORTS": tmp_path / "reports", "DATA": ROOT / "data", "VENV": packages}
        variables = {f"CONVMIXER_{name}": str(place) for name, place in places.items()}
        for words in (["runs", "STUDY=one"], ["status", "STUDY=one"], ["report", "STUDY=one"]):
            done = make(home, *words, **variables, HOME="/proc/none", XDG_CACHE_HOME="/proc/none")
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        subprocess.run(["umount", "--lazy", home.root], check=True)
    record = json.loads((tmp_path / "reports" / "one" / "runs" / RUN / records.RESULT).read_text())
    assert record["environment"]["native"] is True and (tmp_path / "reports" / "one" / "index.html").exists()
    seen("without a place for reports: one line; with it trained with the native layers, the page is built")


def quota_group(microseconds):
    """A real cgroup with a quota of processor time, of either version; skipped where none can be made."""
    for top, files in (
        ("/sys/fs/cgroup/cpu", {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": str(microseconds)}),
        ("/sys/fs/cgroup", {"cpu.max": f"{microseconds} 100000"}),
    ):
        group = Path(top) / f"convmixer-test-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            for name, text in files.items():
                (group / name).write_text(text)
            return group
        except OSError:
            group.rmdir()
    pytest.skip("making a cgroup with a quota needs root and a writable /sys/fs/cgroup")


COUNT = """
import os, sys
open(sys.argv[1] + "/cgroup.procs", "w").write(str(os.getpid()))
from lib import machine
from lib.train import pick_device
import torch
pick_device("cpu")
print(machine.cores(), torch.get_num_threads())
"""


@pytest.mark.fault(47, "a real cgroup with a quota of one core")
def test_a_real_quota_of_one_core_is_one_thread(seen):
    group = quota_group(100_000)
    try:
        command = [sys.executable, "-c", COUNT, str(group)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    finally:
        group.rmdir()
    assert done.stdout.split() == ["1", "1"], done.stderr
    seen("1 core, 1 thread")
