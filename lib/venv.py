"""`make setup`: a virtual environment with the pinned packages, from `python3 -I lib/venv.py FOLDER`.

Runs before there is any package, so on the standard library alone. What a shell or a pip.conf says about where pip
installs, or what it refuses, is for other installations and does not count here; how the registry is reached does.
"""

import configparser
import contextlib
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# pip's settings that are kept: without them some people reach no registry.
KEPT = {
    "index-url", "extra-index-url", "find-links", "no-index", "trusted-host", "proxy", "cert", "client-cert",
    "keyring-provider", "use-feature", "use-deprecated", "timeout", "default-timeout", "retries", "cache-dir",
    "no-cache-dir",
}  # fmt: skip
MADE_HERE = ".setting-up"  # in a folder whose set-up has not come to its end
LARGE = 20  # MB from which on a download gets a line of its own
QUIET = 30  # seconds without a line; a terminal has a line that renews itself each second


class SetupError(Exception):
    """The set-up cannot go on: says why and what to do."""


def main(folder: Path) -> None:
    """Sets the folder up. What cannot be finished is taken away again, unless there was something before."""
    try:
        ours = not folder.exists() or (folder / MADE_HERE).exists() or not any(folder.iterdir())
        if ours:
            clear(folder)  # of a set-up that was killed
        temporary = folder / MADE_HERE
        temporary.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"{folder}: {error.strerror}; VENV=/another/folder puts it elsewhere") from None
    # No temporary folder of the system is needed, which may be small. PYTHON* is about other programs.
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("PYTHON", "PIP_"))}
    environment |= {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    done = False
    try:
        print(f"setting up {folder}: some 3 GB to fetch, 7 GB on the disk; 2 to 10 minutes", flush=True)
        make(folder, environment)
        install(folder, environment)
        print(f"{folder} is ready", flush=True)
        done = True
    finally:
        if ours and not done:
            clear(folder)
        else:
            shutil.rmtree(temporary, ignore_errors=True)


def make(folder: Path, environment: dict) -> None:
    """The virtual environment, with pip and nothing else."""
    command = [sys.executable, "-I", "-m", "venv", str(folder)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        lines = done.stdout.strip().splitlines() or ["no reason given"]
        if "ensurepip" in done.stdout or "No module named" in done.stdout:
            raise SetupError(
                f"{sys.executable} lacks what makes virtual environments (venv, ensurepip). On Debian and Ubuntu: "
                f"apt install python3.{sys.version_info.minor}-venv; or give PYTHON=another python3"
            )
        raise SetupError(f"{sys.executable} -m venv {folder} failed: {lines[-1]}")


def install(folder: Path, environment: dict) -> None:
    """The packages of pyproject.toml, and this project as the folder that it is."""
    pip = [str(folder / "bin" / "python"), "-m", "pip"]
    # Nothing is written beside the source: it may be read-only.
    (folder / MADE_HERE / "setup.cfg").write_text(f"[egg_info]\negg_base = {folder / MADE_HERE}\n")
    environment = {
        **environment, **settings(),
        "PIP_CONFIG_FILE": os.devnull, "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "DIST_EXTRA_CONFIG": str(folder / MADE_HERE / "setup.cfg"),
    }  # fmt: skip
    command = [*pip, "install", "--no-color", "--progress-bar", "off", "--editable", f"{ROOT}[dev]"]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        said = show(process.stdout, folder)
    if process.returncode:
        errors = [line for line in said if re.match(r"\s*(ERROR|error|×)\b", line)] or said[-1:]
        more = ""
        with contextlib.suppress(OSError):  # a full disk, perhaps what pip complains of
            descriptor, log = tempfile.mkstemp(prefix="convmixer-setup-", suffix=".log")
            with os.fdopen(descriptor, "w") as file:
                file.write("\n".join(said) + "\n")
            more = f"All that it said is in {log}; "
        raise SetupError(f"pip: {errors[0].strip()}\n{more}mend that and give the same command again")


def settings() -> dict:
    """Those of pip's settings that are kept, from its configuration files and from the environment, as variables."""
    files = configparser.RawConfigParser()
    for path in pip_confs():
        try:
            files.read(path, encoding="utf-8")
        except (configparser.Error, ValueError, OSError) as error:
            raise SetupError(f"{path}: {str(error).splitlines()[0]}; pip cannot read it either") from None
    found = {}
    for section in ("global", "install"):  # the second one wins
        found |= dict(files[section]) if files.has_section(section) else {}
    found |= {n[4:].lower(): v for n, v in os.environ.items() if n.startswith("PIP_")}
    found = {n.replace("_", "-"): v for n, v in found.items()}
    return {f"PIP_{n.upper().replace('-', '_')}": v for n, v in found.items() if n in KEPT}


def pip_confs() -> list[Path]:
    """Where pip looks for its configuration, the last one winning: https://pip.pypa.io/en/stable/topics/configuration/."""
    asked = os.environ.get("PIP_CONFIG_FILE", "")
    if asked == os.devnull:
        return []
    home = Path(os.path.expanduser("~"))
    shared = [*os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":"), "/Library/Application Support"]
    own = os.environ.get("XDG_CONFIG_HOME") or home / ".config"
    return [
        *(Path(folder) / "pip" / "pip.conf" for folder in shared), Path("/etc/pip.conf"),
        home / ".pip" / "pip.conf", home / "Library" / "Application Support" / "pip" / "pip.conf",
        Path(own) / "pip" / "pip.conf", Path(sys.prefix) / "pip.conf", *([Path(asked)] if asked else []),
    ]  # fmt: skip


def show(lines, folder: Path) -> list[str]:
    """Prints what is worth it of pip's lines while they come, and how far the folder is; returns them all."""
    said, coming, begun = [], queue.Queue(), time.monotonic()

    def read() -> None:
        for line in lines:
            coming.put(line.rstrip("\n"))
        coming.put(None)

    threading.Thread(target=read, daemon=True).start()
    live = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"
    doing, installing = "asking what there is", False
    while True:
        try:
            line = coming.get(timeout=1 if live else QUIET)
        except queue.Empty:
            installed = len(list(folder.glob("lib/python*/site-packages/*.dist-info")))
            so_far = f"{installed}" if installing else f"{size(folder / MADE_HERE) / 1e9:.1f} GB fetched"
            tell(begun, f"{doing} ... {so_far} so far", live, passing=live)
            continue
        if line is None:
            print("\r\x1b[K" if live else "", end="", flush=True)
            return said
        said.append(line)
        if match := re.match(r"\s*(?:Downloading|Using cached|Processing) (\S+)(?: \(([\d.]+) ([kMG]B)\))?", line):
            doing = match[1].rpartition("/")[2].split("-py")[0].split("-cp")[0]
            if match[2] and float(match[2]) * {"kB": 1e-3, "MB": 1, "GB": 1e3}[match[3]] >= LARGE:
                tell(begun, f"{doing} ({match[2]} {match[3]})", live)
        elif match := re.match(r"Installing collected packages: (.*)", line):
            doing, installing = f"installing {match[1].count(',') + 1} packages", True
            tell(begun, f"{doing}, a minute or two", live)


def tell(begun: float, text: str, live: bool, passing: bool = False) -> None:
    """Prints a line with the time since `begun`; at a terminal (live) over one that was only passing."""
    seconds = int(time.monotonic() - begun)
    line = f"  {seconds // 60}:{seconds % 60:02d}  {text}"
    if live:
        line = f"\r{line[: shutil.get_terminal_size().columns - 1]}\x1b[K"  # the rest of the line is cleared
    print(line, end="" if passing else "\n", flush=True)


def size(folder: Path) -> int:
    """Bytes in the files of a folder, some of which may be going away."""
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total


def clear(folder: Path) -> None:
    """Takes away what is in the folder, and the folder where that is allowed."""
    if folder.is_dir():
        for path in folder.iterdir():
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()


if __name__ == "__main__":
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler)
    try:
        main(Path(sys.argv[1]).absolute())
    except SetupError as problem:
        sys.exit(str(problem))
    except KeyboardInterrupt:
        sys.exit("stopped; the same command begins anew")
