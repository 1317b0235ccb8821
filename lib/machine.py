"""The machine that a run is on: processor, cores, memory, versions and commit. Torch is not imported at its top."""

import contextlib
import functools
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path

from lib.study import ROOT

# What the kernel calls them, the widest first.
VECTORS = {
    "amx_bf16": "AMX",
    "avx512_bf16": "AVX-512 with bfloat16",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "sve": "SVE",
    "asimd": "NEON",
}


def environment() -> dict:
    """Where a result comes from: versions, processor, system, commit. Of torch only what needs no import of it."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "vectors": vectors(),
        "cores": cores(),
        **git_state(),
    }


def cpu_name() -> str:
    """The processor as the system names it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def vectors() -> str:
    """The widest vector instructions of the processor, as far as the system says: the speed of training hangs on them,
    and processors of one name may differ in them."""
    there = _cpuinfo("flags", "Features").split()
    return next((name for flag, name in VECTORS.items() if flag in there), "")


@functools.cache
def _cpuinfo(*names: str) -> str:
    """What Linux says of the first core under one of these names; empty elsewhere."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(names):
                return line.partition(":")[2].strip()
    return ""


def git_state() -> dict:
    """The commit and whether source files differ from it; both None outside a git checkout of this project.

    The repository is named, not looked for: git then asks neither who owns it (a container often has a checkout of
    another user) nor in the folders above (a ZIP unpacked inside somebody's repository is none of that one's commits).
    """
    ours = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # of a hook, perhaps

    def git(*words: str) -> str:
        command = ("git", "--no-optional-locks", f"--git-dir={ROOT / '.git'}", f"--work-tree={ROOT}", *words)
        return subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # Reports are what runs write: they do not make the source another one.
        changed = git("status", "--porcelain", "--", "lib", "notebooks", "params", "pyproject.toml")
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(changed)}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def cores() -> int:
    """Cores that this process may use: those that it may run on, or as many as a container's quota of time is worth."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(there, math.ceil(min(cpu_quotas(), default=there))))


def cpu_quotas(proc: Path = Path("/proc/self")) -> list[float]:
    """In cores, each quota of processor time of the cgroups that the process is in and of those around them.

    A container has one (docker --cpus, a Kubernetes limit); what cannot be read limits nothing.
    """
    quotas = []
    for folder in cgroups(proc):
        with contextlib.suppress(OSError, ValueError, ZeroDivisionError):
            if (folder / "cpu.max").exists():  # version 2: "max 100000" or "150000 100000"
                quota, period = (folder / "cpu.max").read_text().split()
            else:  # version 1: -1 for none
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            quotas.append(float(quota) / float(period))  # ValueError: "max"
    return [quota for quota in quotas if quota > 0]


def cgroups(proc: Path) -> list[Path]:
    """The folders of the process's cgroups that may limit the processor, with those around each, as far as mounted."""
    folders = []
    with contextlib.suppress(OSError, ValueError, IndexError):
        paths = {}  # of a version 1 hierarchy by its controllers, of version 2 under ""
        for line in (proc / "cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            paths |= dict.fromkeys(controllers.split(","), path)
        for line in (proc / "mountinfo").read_text().splitlines():
            before, _, after = line.partition(" - ")
            root, mount = before.split()[3:5]
            kind, _, options = after.split(" ", 2)
            controller = {"cgroup2": "", "cgroup": "cpu"}.get(kind)
            if controller in paths and (kind == "cgroup2" or "cpu" in options.split(",")):
                # A container often sees its own cgroup where others see the root of all.
                own, top = Path(paths[controller]), Path(mount)
                inside = own.relative_to(root) if own.is_relative_to(root) and ".." not in own.parts else Path()
                folders += [top / inside, *(top / part for part in inside.parents)]
    return folders


def use_cores() -> None:
    """Makes torch use no more threads than there are cores to use; OMP_NUM_THREADS in the environment decides itself.

    Torch counts the processors of the machine, not what a container may use of them.
    """
    import torch

    if not re.fullmatch(r"\s*\+?0*[1-9]\d*\s*(,.*)?", os.environ.get("OMP_NUM_THREADS", "")):
        torch.set_num_threads(min(torch.get_num_threads(), cores()))


def gpus() -> list[str]:
    """The CUDA devices that CUDA_VISIBLE_DEVICES leaves, each by its name in there."""
    import torch

    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(1024)))).split(",")
    return [name.strip() for name in names[: torch.cuda.device_count()]]


NONE_HERE = "there is none here"


@functools.cache
def best_device() -> str:
    """cuda, mps or cpu: the fastest that can be used. Of a GPU that is there and cannot be, a line says why, once."""
    for kind in ("cuda", "mps"):
        if not (fault := device_fault(kind)):
            return kind
        if fault != NONE_HERE:
            print(f"{fault}; taking the CPU", file=sys.stderr, flush=True)
    return "cpu"


@functools.cache
def device_fault(kind: str) -> str:
    """Why nothing can be trained on cpu, cuda, cuda:1 or mps here, in a line; empty where it can be."""
    import torch

    if kind == "cpu":
        return ""
    family, _, number = kind.partition(":")
    with warnings.catch_warnings(record=True) as warned:  # of a driver that is too old torch only warns
        warnings.simplefilter("always")
        try:
            if getattr(torch, family).is_available():
                if number and int(number) >= (there := torch.cuda.device_count()):
                    return f"the last one here is cuda:{there - 1}"
                try_out(torch.device(kind))
                return ""
            reason = str(warned[0].message) if warned else ""
        except Exception as error:  # the driver, CUDA, cuDNN and MPS have errors of their own
            reason = str(error)
    first = reason.strip().partition("\n")[0].partition(". ")[0].removeprefix("CUDA initialization: ").rstrip(".")
    name = gpu_name(int(number or 0)) if family == "cuda" else "the GPU"
    return f"{name} cannot be used ({first})" if reason else NONE_HERE


def try_out(device) -> None:
    """A convolution and a product, forward and back: what a GPU must be able to do, with room for them."""
    import torch

    x, w = torch.ones(2, 4, 8, 8, device=device, requires_grad=True), torch.ones(4, 4, 3, 3, device=device)
    (torch.nn.functional.conv2d(x, w).mean((2, 3)) @ w.new_ones(4, 4)).sum().backward()
    x.grad.sum().item()  # waits for it


def gpu_name(number: int = 0) -> str:
    """The NVIDIA card as torch names it."""
    import torch

    with contextlib.suppress(Exception):  # the device that cannot be used may not say its name either
        return torch.cuda.get_device_name(number)
    return "the GPU"


def peak_memory() -> float:
    """MB: the most that this process has held in memory so far."""
    import resource  # not on Windows

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6
