"""The machine as a run finds it: cores and quotas, threads, a GPU that cannot be used, the commit of a checkout."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from lib import machine
from lib.train import TrainingError, pick_device

HERE = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def place(tmp_path, cgroup, mounts, files):
    """A made-up /proc/self and the cgroup files that it leads to. A mount: (root, folder, kind, options)."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in cgroup))
    lines = [f"31 23 0:28 {root} {tmp_path / at} rw - {kind} cgroup {how}\n" for root, at, kind, how in mounts]
    (proc / "mountinfo").write_text("22 1 0:1 / / rw shared:1 - ext4 /dev/sda rw\n" + "".join(lines))
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text + "\n")
    return proc


V1 = [("/", "cg/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"), ("/", "cg/memory", "cgroup", "rw,memory")]
V2 = [("/", "cg", "cgroup2", "rw")]


def v1(folder, quota, period=100000):
    return {f"{folder}/cpu.cfs_quota_us": str(quota), f"{folder}/cpu.cfs_period_us": str(period)}


@pytest.mark.parametrize(
    "cgroup, mounts, files, quotas",
    [
        (["0::/"], V2, {"cg/cpu.max": "150000 100000"}, [1.5]),
        (["0::/"], V2, {"cg/cpu.max": "max 100000"}, []),
        (["0::/"], V2, {}, []),
        (["0::/a/b"], V2, {"cg/a/b/cpu.max": "max 100000", "cg/a/cpu.max": "50000 100000"}, [0.5]),
        (["0::/a/b"], V2, {"cg/a/b/cpu.max": "400000 100000", "cg/a/cpu.max": "300000 100000"}, [4, 3]),
        (["0::/gone"], V2, {"cg/cpu.max": "200000 100000"}, [2]),
        (["0::/../../other"], V2, {"cg/cpu.max": "200000 100000"}, [2]),
        (["0::/"], V2, {"cg/cpu.max": "nonsense"}, []),
        (["4:cpu,cpuacct:/a", "3:memory:/"], V1, v1("cg/cpu,cpuacct/a", 250000), [2.5]),
        (["4:cpu,cpuacct:/a", "3:memory:/"], V1, v1("cg/cpu,cpuacct/a", -1) | v1("cg/cpu,cpuacct", 100000), [1]),
        (["4:cpu,cpuacct:/a"], V1, v1("cg/cpu,cpuacct/a", 100000, 0), []),
        # A container without a namespace of its own: the mount shows the cgroup's folder as if it were the root.
        (["4:cpu:/docker/x"], [("/docker/x", "cg/cpu", "cgroup", "rw,cpu")], v1("cg/cpu", 800000), [8]),
        (["4:cpu:/docker/x/y"], [("/docker/x", "cg/cpu", "cgroup", "rw,cpu")], v1("cg/cpu/y", 800000), [8]),
        # Both versions side by side, as systemd's hybrid has them.
        (["4:cpu:/a", "0::/b"], [("/", "c", "cgroup", "cpu"), ("/", "u", "cgroup2", "rw")], v1("c/a", 1000), [0.01]),
        (["no colons"], V2, {"cg/cpu.max": "100000 100000"}, []),
    ],
)  # fmt: skip
def test_the_quota_of_a_container_is_found_in_its_cgroup_and_around_it(tmp_path, cgroup, mounts, files, quotas):
    assert machine.cpu_quotas(place(tmp_path, cgroup, mounts, files)) == quotas


def test_what_cannot_be_read_limits_nothing(tmp_path):
    assert machine.cpu_quotas(tmp_path / "nothing") == []


@pytest.mark.parametrize(
    "quotas, cores", [([], HERE), ([0.01], 1), ([1000], HERE), ([HERE - 0.5], HERE), ([5, 1, 7], 1), ([1.0], 1)]
)
def test_there_are_as_many_cores_as_the_quota_is_worth(monkeypatch, quotas, cores):
    monkeypatch.setattr(machine, "cpu_quotas", lambda: quotas)
    assert machine.cores() == cores


THREADS = """
import os, sys
cores = len(os.sched_getaffinity(0))
from lib import machine
from lib.train import pick_device
import torch

if len(sys.argv) > 1:
    machine.cpu_quotas = lambda: [float(sys.argv[1])]
pick_device("cpu")
assert len(os.sched_getaffinity(0)) == cores, f"tied to {os.sched_getaffinity(0)}"
print(torch.get_num_threads())
"""


def threads(*words, **environment):
    """How many threads torch has in a fresh process with these variables."""
    done = subprocess.run(
        [sys.executable, "-c", THREADS, *words], env=CLEAN | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


CLEAN = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "KMP_", "GOMP_", "MKL_"))}


@pytest.mark.skipif(machine.cores() < 2, reason="there is one core to use")
def test_variables_of_a_shell_neither_tie_the_process_to_a_core_nor_take_its_threads():
    tied = {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores", "GOMP_CPU_AFFINITY": "0", "KMP_AFFINITY": "compact"}
    fewer = {"OMP_THREAD_LIMIT": "1", "OMP_DYNAMIC": "true", "MKL_NUM_THREADS": "1"}
    usual = threads()
    assert usual > 1
    assert threads(**tied, **fewer) == usual


def test_threads_do_not_spin_for_long_unless_they_are_told_to():
    code = "import lib, os; print(os.environ.get('GOMP_SPINCOUNT'))"
    for given, spins in (({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, "None")):
        done = subprocess.run([sys.executable, "-c", code], env=CLEAN | given, capture_output=True, text=True)
        assert done.stdout == f"{spins}\n", done.stderr


def test_torch_takes_no_more_threads_than_the_quota_is_worth_unless_it_is_told_to():
    assert threads("0.5") == 1
    assert threads(OMP_NUM_THREADS="1") == 1
    assert threads("0.5", OMP_NUM_THREADS=str(HERE)) == HERE
    assert threads("0.5", OMP_NUM_THREADS="some") == 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system ties no process to a core")
def test_a_process_tied_to_a_core_counts_one():
    code = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n" + THREADS
    done = subprocess.run([sys.executable, "-c", code], env=CLEAN, capture_output=True, text=True, timeout=120)
    assert done.stdout == "1\n", done.stderr


# ------------------------------------------------------------------------------------------------ devices


def stub_gpu(monkeypatch, error=None, warning=None):
    """As if there were a GPU that fails with `error`, or that torch finds not usable and warns of."""

    def available():
        if warning:
            machine.warnings.warn(warning, stacklevel=1)
        return not warning

    def fail(device):
        if error:
            raise error

    monkeypatch.setattr(torch.cuda, "is_available", available)
    monkeypatch.setattr(torch.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Made-Up GPU 3000")
    monkeypatch.setattr(machine, "try_out", fail)


OLD = (
    "CUDA initialization: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU "
    "driver by downloading and installing a new version. (Triggered internally at /x/CUDAFunctions.cpp:119.)"
)


@pytest.mark.parametrize(
    "fault, words",
    [
        ({"warning": OLD}, "The NVIDIA driver on your system is too old (found version 11040)"),
        (
            {
                "error": RuntimeError(
                    "CUDA error: no kernel image is available for execution on the device\nCUDA kernel"
                )
            },
            "CUDA error: no kernel image is available for execution on the device",
        ),
        (
            {"error": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB. GPU")},
            "CUDA out of memory",
        ),
        ({"error": OSError("libcudnn.so.9: cannot open shared object file")}, "libcudnn.so.9: cannot open"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_left_out_in_one_line_with_its_name(monkeypatch, capfd, devices, fault, words):
    stub_gpu(monkeypatch, **fault)
    assert [pick_device("auto").type for _ in range(3)] == ["cpu"] * 3
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.startswith(f"Made-Up GPU 3000 cannot be used ({words}")
    with pytest.raises(TrainingError) as refusal:
        pick_device("cuda")
    assert str(refusal.value).startswith("device=cuda: Made-Up GPU 3000 cannot be used (") and words in str(
        refusal.value
    )
    assert str(refusal.value).endswith(", give device=cpu or auto") and "\n" not in str(refusal.value)


def test_a_gpu_that_works_is_taken_and_a_machine_without_one_needs_no_words(monkeypatch, capfd, devices):
    stub_gpu(monkeypatch)
    assert pick_device("auto").type == pick_device("cuda").type == "cuda"
    machine.device_fault.cache_clear()
    machine.best_device.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto").type == "cpu"
    assert capfd.readouterr().err == ""


def test_one_of_several_gpus_can_be_asked_for_and_one_too_many_is_refused(monkeypatch, devices):
    stub_gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(TrainingError, match=r"device=cuda:2: the last one here is cuda:1, give device=cpu or auto"):
        pick_device("cuda:2")


@pytest.mark.parametrize(
    "visible, count, names",
    [
        (None, 2, ["0", "1"]), (None, 0, []), ("", 0, []),
        ("3,5", 2, ["3", "5"]), ("GPU-a, MIG-b", 2, ["GPU-a", "MIG-b"]),
        ("1,7,0", 1, ["1"]),  # CUDA takes no more after one that is not there
    ],
)  # fmt: skip
def test_the_gpus_are_those_that_the_environment_leaves(monkeypatch, visible, count, names):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert machine.gpus() == names


def test_what_a_gpu_is_tried_with_runs():
    before = torch.get_rng_state()
    machine.try_out(torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), before)


# ------------------------------------------------------------------------------------------------ the commit

needs_git = pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")


def git(folder, *words):
    who = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "safe.directory=*")
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    done = subprocess.run(["git", "-C", folder, *who, *words], env=clean, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def repository(folder):
    """A git repository with one commit of a folder lib; the commit."""
    (folder / "lib").mkdir(parents=True)
    (folder / "lib" / "model.py").write_text("pass\n")
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return git(folder, "rev-parse", "HEAD")


@needs_git
def test_a_checkout_knows_its_commit_and_whether_its_source_was_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "ROOT", tmp_path / "ours")
    commit = repository(tmp_path / "ours")
    assert machine.git_state() == {"commit": commit, "dirty": False}
    (tmp_path / "ours" / "lib" / "model.py").write_text("changed\n")
    assert machine.git_state() == {"commit": commit, "dirty": True}
    git(tmp_path / "ours", "worktree", "add", "-q", tmp_path / "tree", commit)
    monkeypatch.setattr(machine, "ROOT", tmp_path / "tree")
    assert machine.git_state() == {"commit": commit, "dirty": False}


@needs_git
@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="giving a folder away needs root")
def test_a_checkout_of_another_owner_knows_its_commit(tmp_path, monkeypatch):
    commit = repository(tmp_path / "ours")
    for folder, names, files in os.walk(tmp_path):
        for name in (".", *names, *files):
            os.chown(os.path.join(folder, name), 12345, 12345)
    asked = ["git", "-C", tmp_path / "ours", "rev-parse", "HEAD"]
    empty = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "GIT_CONFIG_NOSYSTEM": "1"}
    assert subprocess.run(asked, env=empty, capture_output=True).returncode  # git by itself refuses
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(machine, "ROOT", tmp_path / "ours")
    assert machine.git_state() == {"commit": commit, "dirty": False}


@needs_git
@pytest.mark.parametrize("left", [None, "folder", "file"])
def test_the_commit_is_never_that_of_a_strangers_repository(tmp_path, monkeypatch, left):
    """Around the folder, named by a variable (as in a git hook), or behind a .git that is none."""
    commit = repository(tmp_path / "theirs")
    ours = tmp_path / "theirs" / "unpacked"
    (ours / "lib").mkdir(parents=True)
    if left == "folder":
        (ours / ".git").mkdir()
    elif left == "file":
        (ours / ".git").write_text("gitdir: /gone\n")
    monkeypatch.setattr(machine, "ROOT", ours)
    assert git(tmp_path / "theirs", "rev-parse", "HEAD") == commit
    assert machine.git_state() == {"commit": None, "dirty": None}
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "theirs" / ".git"))
    assert machine.git_state() == {"commit": None, "dirty": None}
    monkeypatch.setattr(machine, "ROOT", tmp_path / "ours")
    other = repository(tmp_path / "ours")
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "nothing"))
    assert machine.git_state() == {"commit": other, "dirty": False}


def test_without_git_the_commit_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.git_state() == {"commit": None, "dirty": None}
