"""Compiles the C files beside this module at first use and loads them with ctypes: seconds, no build system.

Everything that uses it has a slower way in PyTorch or Pillow, so a missing compiler is one line in the log, no error.
"""

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


def cache_dir() -> Path:
    """Where compiled code lives: $XDG_CACHE_HOME/convmixer-cifar10, or ~/.cache/convmixer-cifar10."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "convmixer-cifar10"


def _cpu() -> str:
    """What -march=native depends on: a cache on a shared disk must not hand AVX-512 code to a machine without it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    # Its family and model too: -march=native tunes for them, and what layers.py times is kept with the code.
    names = ("cpu family", "model", "flags", "CPU implementer", "CPU part", "Features")
    said = sorted({line for line in lines if line.startswith(names)})  # of all cores: the same on each of them
    return "\n".join(said) or platform.processor() + platform.machine()


def _compile(source: Path, flags: tuple[str, ...]) -> Path:
    """The shared library of `source`, from the cache or compiled into it; raises OSError or CalledProcessError."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise FileNotFoundError("no C compiler on the PATH")
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=True).stdout
    parts = [part.read_text() for part in (source, *sorted(source.parent.glob("*.h")))]  # it may include these
    key = hashlib.sha256("\0".join([*parts, *FLAGS, *flags, version, _cpu()]).encode()).hexdigest()[:16]
    library = cache_dir() / f"{source.stem}-{key}.so"
    if not library.exists():
        print(f"compiling lib/native/{source.name} for this processor (once)", file=sys.stderr)
        library.parent.mkdir(parents=True, exist_ok=True)
        # Compiled under a name of its own and renamed: of two processes that start cold, both succeed.
        with tempfile.TemporaryDirectory(dir=library.parent) as folder:
            made = Path(folder) / library.name
            subprocess.run(
                [compiler, *FLAGS, str(source), "-o", str(made), "-lm", *flags],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            made.replace(library)
    return library


@functools.cache
def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """The compiled lib/native/`name`.c, or None (said once, in one line) where it cannot be compiled or loaded."""
    try:
        return ctypes.CDLL(str(_compile(Path(__file__).with_name(f"{name}.c"), flags)))
    except (OSError, subprocess.CalledProcessError) as error:
        lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
        reason = next((line for line in lines if "error" in line), lines[0])
        print(f"lib/native/{name}.c is not used, the slower way is: {reason}", file=sys.stderr)
        return None
