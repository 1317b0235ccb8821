"""Compiled code finds a place and a compiler, whatever the shell and the home folder hold."""

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import types

import pytest

from lib.native import compiler

CODE = "int answer(void) { return 42; }\n"
pytestmark = pytest.mark.skipif(not compiler.compilers(), reason="there is no C compiler here")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A repository, a home and a temporary folder that are the test's, and a C file that compiles in no time."""
    for name in ("repository", "home", "temporary", "native"):
        (tmp_path / name).mkdir()
    (tmp_path / "native" / "answer.c").write_text(CODE)
    monkeypatch.setattr(compiler, "ROOT", tmp_path / "repository")
    monkeypatch.setattr(compiler, "__file__", str(tmp_path / "native" / "compiler.py"))
    # Not the module itself: pytest writes what it captures into its temporary folder.
    ours = types.SimpleNamespace(gettempdir=lambda: str(tmp_path / "temporary"))
    ours.TemporaryDirectory = tempfile.TemporaryDirectory
    monkeypatch.setattr(compiler, "tempfile", ours)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_CACHE_HOME", "CC"):
        monkeypatch.delenv(name, raising=False)
    compiler.load.cache_clear()
    compiler._announce.cache_clear()
    yield tmp_path
    compiler.load.cache_clear()
    compiler._announce.cache_clear()


def found(place):
    """In which of the folders the library is now."""
    (library,) = place.rglob("answer-*.so")
    return library.relative_to(place).parts[0]


def close(folder):
    """Nothing can be written in it, by root neither: it is a file."""
    folder.rmdir()
    folder.write_text("")


@pytest.mark.parametrize(
    "variables, closed, where",
    [
        ({}, (), "home"),
        ({"XDG_CACHE_HOME": "{}/xdg"}, (), "xdg"),
        ({"XDG_CACHE_HOME": "/proc/none"}, (), "home"),
        ({"XDG_CACHE_HOME": "relative"}, (), "home"),
        ({"XDG_CACHE_HOME": ""}, (), "home"),
        ({"HOME": "/proc/none"}, (), "repository"),
        ({"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}, (), "repository"),
        ({}, ("home", "repository"), "temporary"),
    ],
)
def test_the_next_place_is_taken_where_one_cannot_be_written(place, monkeypatch, capfd, variables, closed, where):
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(place))
    for name in closed:
        close(place / name)
    assert compiler.load("answer").answer() == 42
    assert found(place) == where
    assert capfd.readouterr().err == "compiling lib/native/answer.c for this processor (once)\n"
    compiler.load.cache_clear()
    assert compiler.load("answer").answer() == 42  # another process: nothing is compiled again
    assert capfd.readouterr().err == ""


def test_without_any_place_one_line_names_them(place, monkeypatch, capfd):
    for name in ("home", "repository", "temporary"):
        close(place / name)
    assert compiler.load("answer") is None and compiler.load("answer") is None
    said = capfd.readouterr().err
    assert said.startswith("lib/native/answer.c is not used, the slower way is: ") and said.count("\n") == 1
    assert f"{place}/home/.cache/convmixer-cifar10: Not a directory" in said and f"{place}/repository" in said


def test_without_a_home_that_the_system_knows_the_repositorys_own_place_is_taken(place, monkeypatch):
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user whom no passwd file names
    assert compiler.load("answer").answer() == 42
    assert found(place) == "repository"


def test_a_library_that_cannot_be_executed_where_it_lies_is_made_at_the_next_place(place, monkeypatch, capfd):
    real = compiler.ctypes.CDLL

    def noexec(path):
        if str(place / "home") in path:
            raise OSError(f"{path}: failed to map segment from shared object")
        return real(path)

    monkeypatch.setattr(compiler.ctypes, "CDLL", noexec)
    assert compiler.load("answer").answer() == 42
    assert len(list((place / "repository").rglob("*.so"))) == 1
    assert capfd.readouterr().err.count("\n") == 1


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="no owners here")
@pytest.mark.parametrize("trap", ["open", "link", "theirs"])
def test_code_is_never_executed_from_a_temporary_folder_that_others_may_write(place, monkeypatch, trap):
    close(place / "home")
    close(place / "repository")
    folder = place / "temporary" / f"convmixer-cifar10-{os.getuid()}"
    if trap == "link":
        (place / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(place / "elsewhere")
    else:
        folder.mkdir()
        folder.chmod(0o777 if trap == "open" else 0o700)
    if trap == "theirs":
        uid = os.getuid()
        folder = folder.rename(folder.with_name(f"convmixer-cifar10-{uid + 1}"))
        monkeypatch.setattr(os, "getuid", lambda: uid + 1)
    assert compiler.load("answer") is None
    assert not list(place.rglob("*.so"))


def test_the_temporary_folder_is_the_users_own(place):
    close(place / "home")
    close(place / "repository")
    assert compiler.load("answer").answer() == 42
    (folder,) = (place / "temporary").iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    "words", ["{cc} -pthread", "no-such-compiler", "no-such-launcher cc", "false", "'", "{broken}"]
)
def test_a_compiler_with_options_or_one_that_does_not_work_is_no_reason_to_be_slow(place, monkeypatch, words):
    (place / "broken").write_text("no program")
    (place / "broken").chmod(0o755)
    monkeypatch.setenv("CC", words.format(cc=shutil.which("cc"), broken=place / "broken"))
    assert compiler.load("answer").answer() == 42


def test_the_compiler_that_is_asked_for_is_used_with_its_options(place, monkeypatch):
    stub, said = place / "stub", place / "said"
    stub.write_text(f'#!/bin/sh\necho "$@" >> "{said}"\nexec {shutil.which("cc")} "$@"\n')
    stub.chmod(0o755)
    monkeypatch.setenv("CC", f"{stub} -DASKED=1")
    assert compiler.load("answer").answer() == 42
    assert "-DASKED=1" in said.read_text()


def test_a_compiler_needs_no_temporary_folder_of_the_system(place, monkeypatch):
    monkeypatch.setenv("TMPDIR", "/proc/none")
    assert compiler.load("answer").answer() == 42


def test_without_a_compiler_the_line_says_so(place, monkeypatch, capfd):
    monkeypatch.setenv("PATH", str(place))
    assert compiler.load("answer") is None
    assert capfd.readouterr().err.endswith("no C compiler on the PATH, install one\n")


def test_code_that_does_not_compile_is_one_line(place, capfd):
    (place / "native" / "answer.c").write_text("int answer(void) { return unheard_of; }\n")
    assert compiler.load("answer") is None
    _compiling, said = capfd.readouterr().err.splitlines()
    assert "error" in said and "unheard_of" in said


def test_layers_and_augmentation_are_native_without_a_home_or_a_cache():
    """The real ones, in a process of their own; here the compiled code lies in the repository's .cache afterwards."""
    code = "from lib.native import compiler, layers; assert layers.compiled() and compiler.load('augment')"
    environment = {**os.environ, "HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=250)
    assert done.returncode == 0 and "slower" not in done.stderr, done.stderr
