"""Compiles the C files beside this module at first use and loads them with ctypes: seconds, no build system.

Everything that uses it has a slower way in PyTorch or Pillow, so a missing compiler is one line in the log, no error.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lib.study import ROOT

NAME = "convmixer-cifar10"
FLAGS = ("-O3", "-march=native", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math")


def cache_dirs() -> Iterator[Path]:
    """Where compiled code may live, the best place first.

    $XDG_CACHE_HOME, ~/.cache, .cache of the repository, a folder of the user's own among the temporary ones. Each may
    be read-only, full, or on a disk from which nothing can be executed, and then the next one is tried.
    """
    for base in (os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~/.cache")):
        if os.path.isabs(base):  # a relative one counts for nothing, says its standard; without a home ~ stays as it is
            yield Path(base) / NAME
    yield ROOT / ".cache" / NAME
    with contextlib.suppress(OSError):  # no temporary folder either
        folder = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid() if hasattr(os, 'getuid') else 'code'}"
        folder.mkdir(mode=0o700, exist_ok=True)
        # Code is executed from it: nobody else may have put it there.
        status = folder.lstat()
        if not hasattr(os, "getuid") or (status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) == 0o700):
            yield folder


def compilers() -> list[list[str]]:
    """Command lines of the C compilers there may be: $CC, which may have options, then the usual names."""
    with contextlib.suppress(ValueError):  # an unmatched quote
        asked = shlex.split(os.environ.get("CC", ""))
        return [words for words in (asked, ["cc"], ["gcc"], ["clang"]) if words and shutil.which(words[0])]
    return [[name] for name in ("cc", "gcc", "clang") if shutil.which(name)]


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


@functools.cache
def _version(*compiler: str) -> str:
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    except OSError as error:
        raise subprocess.SubprocessError(f"{compiler[0]}: error: {error.strerror}") from None


def _compile(source: Path, flags: tuple[str, ...], compiler: list[str], cache: Path) -> Path:
    """The shared library of `source`, from `cache` or compiled into it; raises OSError or SubprocessError."""
    parts = [part.read_text() for part in (source, *sorted(source.parent.glob("*.h")))]  # it may include these
    key = hashlib.sha256("\0".join([*parts, *FLAGS, *flags, _version(*compiler), _cpu()]).encode()).hexdigest()[:16]
    library = cache / f"{source.stem}-{key}.so"
    if not library.exists():
        cache.mkdir(parents=True, exist_ok=True)
        # Compiled under a name of its own and renamed: of two processes that start cold, both succeed.
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _announce(source.name)
            made = Path(folder) / library.name
            subprocess.run(
                [*compiler, *FLAGS, str(source), "-o", str(made), "-lm", *flags],
                check=True, capture_output=True, text=True, env={**os.environ, "TMPDIR": folder, "LC_ALL": "C"},
            )  # fmt: skip
            made.replace(library)
    return library


@functools.cache
def _announce(name: str) -> None:
    print(f"compiling lib/native/{name} for this processor (once)", file=sys.stderr, flush=True)


@functools.cache
def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """The compiled lib/native/`name`.c, or None (said once, in one line) where it cannot be compiled or loaded."""
    reasons = []
    for compiler in compilers():
        for cache in cache_dirs():
            try:
                return ctypes.CDLL(str(_compile(Path(__file__).with_name(f"{name}.c"), flags, compiler, cache)))
            except OSError as error:
                reasons.append(f"{cache}: {error.strerror or error}")
            except subprocess.SubprocessError as error:
                lines = (getattr(error, "stderr", None) or str(error)).strip().splitlines()
                reasons.append(next((line for line in lines if "error" in line), lines[0]))
                if not any(os.strerror(number) in reasons[-1] for number in (errno.ENOSPC, errno.EDQUOT)):
                    break  # no other place would help this compiler
    reason = "; ".join(dict.fromkeys(reasons)) or "no C compiler on the PATH, install one"
    print(f"lib/native/{name}.c is not used, the slower way is: {reason}", file=sys.stderr, flush=True)
    return None
