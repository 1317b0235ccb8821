"""The machine as a run finds it: cores and quotas, threads, a GPU that cannot be used, the commit of a checkout."""

import os
import shutil
import subprocess

import pytest

from lib import machine

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
