"""The machine that a run is on: processor, cores, memory, versions and commit. Torch is not imported here."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import subprocess
import sys
from pathlib import Path

from lib.study import ROOT


def environment() -> dict:
    """Where a result comes from: versions, processor, system, commit. Of torch only what needs no import of it."""
    packages = ("torch", "torchvision", "timm", "numpy", "pillow")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": cores(),
        **git_state(),
    }


@functools.cache
def cpu_name() -> str:
    """The processor as the system names it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


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
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory() -> float:
    """MB: the most that this process has held in memory so far."""
    import resource  # not on Windows

    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size / 1e6 if sys.platform == "darwin" else size * 1024 / 1e6
