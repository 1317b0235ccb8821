"""make setup: a shell and a home folder that hold other people's settings, a Python that lacks a part, a stop."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib import venv
from lib.study import ROOT

# A project that is built without anything from a registry: it has the same form, and no dependencies.
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]

[project]
name = "small"
version = "1"
"""
BACKEND = """
import os, zipfile

def build_editable(folder, config_settings=None, metadata_directory=None):
    assert not os.environ.get("TELL"), "told to fail"
    with zipfile.ZipFile(os.path.join(folder, "small-1-py3-none-any.whl"), "w") as wheel:
        wheel.writestr("small.pth", os.getcwd())
        info = "small-1.dist-info/"
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: small\\nVersion: 1\\nProvides-Extra: dev\\n")
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return "small-1-py3-none-any.whl"
"""
# Each of these redirects the installation or forbids it.
HOSTILE = {
    "PIP_USER": "1", "PIP_TARGET": "/proc/none", "PIP_PREFIX": "/proc/none", "PIP_ROOT": "/proc/none",
    "PIP_CONSTRAINT": "/proc/none", "PIP_REQUIREMENT": "/proc/none", "PIP_REQUIRE_HASHES": "1", "PIP_DRY_RUN": "1",
    "PIP_PYTHON": "/proc/none", "PIP_NO_DEPS": "1", "PIP_NO_BINARY": ":all:", "PIP_LOG": "/proc/none/x",
    "PIP_SRC": "/proc/none", "PYTHONHOME": "/proc/none", "PYTHONPATH": "/proc/none", "PYTHONUSERBASE": "/proc/none",
    "PIP_QUIET": "3", "TMPDIR": "/proc/none",
}  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The small project in the place of this one, and a home folder of the test's."""
    root = tmp_path / "project"
    root.mkdir()
    (root / "pyproject.toml").write_text(PROJECT)
    (root / "backend.py").write_text(BACKEND)
    monkeypatch.setattr(venv, "ROOT", root)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CONFIG_HOME", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    return root


def installed(folder):
    command = [folder / "bin" / "python", "-I", "-m", "pip", "list", "--format=freeze"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    clean["PIP_CONFIG_FILE"] = os.devnull
    return subprocess.run(command, env=clean, capture_output=True, text=True).stdout


def test_no_setting_of_a_shell_or_a_pip_conf_redirects_or_forbids_the_set_up(project, tmp_path, monkeypatch, capfd):
    (tmp_path / "home" / ".config" / "pip").mkdir(parents=True)
    (tmp_path / "home" / ".config" / "pip" / "pip.conf").write_text(
        "[global]\nuser = true\n[install]\nconstraint = /proc/none\ntarget = /proc/none\nrequire-hashes = true\n"
    )
    (tmp_path / "home" / ".pydistutils.cfg").write_text("[install]\nprefix = /proc/none\n")
    for name, value in HOSTILE.items():
        monkeypatch.setenv(name, value)
    folder = tmp_path / "environment"
    venv.main(folder)
    said = capfd.readouterr().out
    assert "small==1" in installed(folder) and not (folder / venv.MADE_HERE).exists()
    assert said.startswith(f"setting up {folder}: some 3 GB to fetch") and "installing 1 packages" in said
    venv.main(folder)  # again, as after a change of the pins
    assert "small==1" in installed(folder)


def settings(tmp_path, monkeypatch, conf, **environment):
    file = tmp_path / "pip.conf"
    file.write_text(conf)
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name, value in {"PIP_CONFIG_FILE": str(file), **environment}.items():
        monkeypatch.setenv(name, value)
    return venv.settings()


def test_what_reaches_the_registry_is_kept_from_the_environment_and_from_pip_conf(tmp_path, monkeypatch):
    conf = (
        "[global]\nindex-url = https://global/simple\nproxy = http://proxy:1\ncert = /a b/c.pem\nuser = true\n"
        "extra-index-url =\n    https://one/simple\n    https://two/simple\ntimeout = 7\n"
        "[install]\nindex-url = https://install/simple\ntarget = /x\nfind-links = /wheels\nno-index = true\n"
        "[download]\nretries = 9\n"
    )
    environment = {"PIP_TRUSTED_HOST": "host", "PIP_USER": "1", "PIP_CLIENT_CERT": "/k.pem", "PIP_TIMEOUT": "9"}
    found = settings(tmp_path, monkeypatch, conf, **environment)
    expected = {
        "PIP_INDEX_URL": "https://install/simple", "PIP_PROXY": "http://proxy:1", "PIP_CERT": "/a b/c.pem",
        "PIP_FIND_LINKS": "/wheels", "PIP_NO_INDEX": "true", "PIP_TRUSTED_HOST": "host", "PIP_CLIENT_CERT": "/k.pem",
        "PIP_TIMEOUT": "9",
    }  # fmt: skip
    assert expected.items() <= found.items()
    assert found["PIP_EXTRA_INDEX_URL"].split() == ["https://one/simple", "https://two/simple"]
    assert not {"PIP_USER", "PIP_TARGET", "PIP_CONFIG_FILE", "PIP_RETRIES"} & found.keys()


def test_pip_conf_is_found_where_pip_finds_it(tmp_path, monkeypatch):
    """Against pip itself: every file that it would read is one that is read here, in its order."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"{tmp_path}/a:{tmp_path}/b")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "c"))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "d"))
    done = subprocess.run([sys.executable, "-m", "pip", "config", "debug"], capture_output=True, text=True, check=True)
    theirs = [line.split(",")[0].strip() for line in done.stdout.splitlines() if ", exists: " in line]
    ours = [str(path) for path in venv.pip_confs()]
    assert len(theirs) >= 6 and set(theirs) <= set(ours)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    assert venv.pip_confs() == []


def test_a_pip_conf_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    with pytest.raises(venv.SetupError, match=r"/pip\.conf: .*; pip cannot read it either$") as refusal:
        settings(tmp_path, monkeypatch, "no section\n")
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "says",
    [
        "The virtual environment was not created successfully because ensurepip is not\navailable.  On Debian/Ubuntu",
        "Error: Command '['x/bin/python', '-m', 'ensurepip', '--upgrade']' returned non-zero exit status 1.",
        "/usr/bin/python3: No module named venv",
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_without_ensurepip_the_package_is_named_and_nothing_stays(project, tmp_path, monkeypatch, says, before):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nfor last; do :; done\nmkdir -p "$last/bin"\ncat <<"END"\n{says}\nEND\nexit 1\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    folder = tmp_path / "environment"
    if before:
        folder.mkdir()
        (folder / "theirs").write_text("")
    with pytest.raises(venv.SetupError) as refusal:
        venv.main(folder)
    text = str(refusal.value)
    assert f"apt install python3.{sys.version_info.minor}-venv" in text and str(python) in text and "\n" not in text
    if before:
        assert (folder / "theirs").exists() and not (folder / venv.MADE_HERE).exists()
    else:
        assert not folder.exists()


def test_what_pip_refuses_is_said_with_the_place_of_the_whole_and_nothing_stays(project, tmp_path, monkeypatch):
    monkeypatch.setenv("TELL", "to fail")
    folder = tmp_path / "environment"
    folder.mkdir()  # empty: a place that somebody has prepared
    with pytest.raises(venv.SetupError, match=r"pip: .*\nAll that it said is in ") as refusal:
        venv.main(folder)
    (log,) = (word.rstrip(";") for word in str(refusal.value).split() if word.rstrip(";").endswith(".log"))
    text = Path(log).read_text()
    Path(log).unlink()
    assert "told to fail" in text
    assert not folder.exists() or not any(folder.iterdir())


def test_what_a_killed_set_up_has_left_is_taken_away_first(project, tmp_path, monkeypatch):
    folder = tmp_path / "environment"
    (folder / venv.MADE_HERE).mkdir(parents=True)
    (folder / "lib").mkdir()
    (folder / "lib" / "half").write_text("")
    monkeypatch.setattr(venv, "make", lambda folder, environment: (folder / "bin").mkdir())
    monkeypatch.setattr(venv, "install", lambda folder, environment: None)
    venv.main(folder)
    assert [path.name for path in folder.iterdir()] == ["bin"]


def test_a_set_up_that_is_stopped_leaves_nothing(project, tmp_path, monkeypatch):
    def stopped(folder, environment):
        (folder / "bin").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(venv, "make", stopped)
    with pytest.raises(KeyboardInterrupt):
        venv.main(tmp_path / "environment")
    assert not (tmp_path / "environment").exists()


def test_a_folder_that_cannot_be_made_is_one_line_that_names_the_way_out(tmp_path):
    with pytest.raises(venv.SetupError, match=r"No such file or directory; VENV=/another/folder|Not a directory"):
        venv.main(Path("/proc/none/x"))


def some_lines():
    yield "Collecting torch==2\n"
    yield "  Downloading torch-2-cp311-cp311-manylinux.whl.metadata (30 kB)\n"
    yield "  Downloading torch-2-cp311-cp311-manylinux.whl (906.4 MB)\n"
    venv.time.sleep(0.3)
    yield "  Using cached six-1-py3-none-any.whl (11 kB)\n"
    yield "Installing collected packages: six, torch\n"
    venv.time.sleep(0.3)


def test_large_downloads_and_quiet_minutes_have_a_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(venv, "QUIET", 0.2)
    (tmp_path / venv.MADE_HERE).mkdir()
    (tmp_path / venv.MADE_HERE / "a.whl").write_bytes(bytes(60_000_000))
    (tmp_path / "lib" / "python3" / "site-packages" / "six-1.dist-info").mkdir(parents=True)
    assert len(venv.show(some_lines(), tmp_path)) == 5
    told = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()]
    assert told == [
        "torch-2 (906.4 MB)", "torch-2 ... 0.1 GB fetched so far", "installing 2 packages, a minute or two",
        "installing 2 packages ... 1 so far",
    ]  # fmt: skip


def test_at_a_terminal_what_is_going_on_renews_itself_in_one_line_that_fits(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(venv.sys.stdout, "isatty", lambda: True, raising=False)
    get = venv.queue.Queue.get
    monkeypatch.setattr(venv.queue.Queue, "get", lambda queue, timeout: get(queue, timeout=timeout / 5))
    venv.show(some_lines(), tmp_path)
    written = capsys.readouterr().out
    assert written.split("\n") == [
        "\r  0:00  torch-2 (906.4 MB)\x1b[K",
        "\r  0:00  torch-2 ... 0.0 GB fetched so f\x1b[K\r  0:00  installing 2 packages, a minute\x1b[K",
        "\r  0:00  installing 2 packages ... 0 so \x1b[K\r\x1b[K",
    ]


@pytest.mark.parametrize("venv_is", ["{}/elsewhere", "{}/with space"])
def test_make_takes_another_place_for_the_packages(tmp_path, venv_is):
    """A stub in the place of the Python that make is given: it says what it is asked."""
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\n[ "$1" = -c ] || {{ echo asked "$@"; mkdir -p "{tmp_path}/elsewhere"; }}\n')
    python.chmod(0o755)
    place = venv_is.format(tmp_path)
    for words, environment in (([f"VENV={place}"], {}), ([], {"CONVMIXER_VENV": place})):
        command = ["make", "-C", ROOT, "setup", f"PYTHON={python}", *words]
        done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
        if " " in place:
            assert done.returncode == 2 and "give a folder without a space in its name" in done.stderr
        else:
            assert done.returncode == 0 and f"asked -I lib/venv.py {place}" in done.stdout, done.stderr
            (tmp_path / "elsewhere" / ".ready").unlink()
