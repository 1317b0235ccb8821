"""The Makefile: which .venv it takes for its own, and what of the shell it keeps from the programs that it starts."""

import os
import shutil
import subprocess
import sys

import pytest

from lib import venv
from lib.study import ROOT

ANEW = ".venv was made for another folder or another Python: it is set up anew\n"


@pytest.fixture
def home(tmp_path):
    """A folder, with a name that is hard on shells, whose .venv is set up; only a stub of what would be installed."""
    folder = tmp_path / "it's #1, a home"
    (folder / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy2(ROOT / name, folder)
    (folder / ".venv" / "bin" / "python").symlink_to(sys.executable)
    (folder / ".venv" / "bin" / "papermill").write_text(f"#!{folder}/.venv/bin/python\n")
    (folder / ".venv" / ".ready").touch()
    return folder


def make(folder, *words, **variables):
    """What make says that it would do, or with a target of its own what it does."""
    environment = {**os.environ, "LC_ALL": "C", **variables}
    done = subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout + done.stderr


def of_another_python(folder):
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to("/bin/false")


def without_python(folder):
    (folder / "bin" / "python").unlink()
    (folder / "bin" / "python").symlink_to(folder / "gone")


def test_a_venv_of_this_folder_is_kept(home):
    assert make(home, "-n", "setup") == "make: Nothing to be done for 'setup'.\n"
    assert (home / ".venv" / ".ready").exists()


def test_a_copied_or_moved_venv_is_set_up_anew(home):
    copied, moved = home.with_name("copied"), home.with_name("moved")
    shutil.copytree(home, copied, symlinks=True)
    home.rename(moved)
    for folder in (copied, moved):
        shown = make(folder, "-n", "status")
        assert shown.startswith(ANEW) and "lib/venv.py .venv" in shown
        assert (folder / ".venv" / venv.MADE_HERE).exists()  # so that it is taken away first


@pytest.mark.parametrize("change", [of_another_python, without_python])
def test_a_venv_whose_python_was_upgraded_or_removed_is_set_up_anew(home, change):
    change(home / ".venv")
    assert make(home, "-n", "setup").startswith(ANEW)


def test_a_venv_at_another_place_is_kept_for_this_folder_and_for_its_copies(home):
    elsewhere = home.parent / "elsewhere"
    (home / ".venv").rename(elsewhere)
    (elsewhere / "bin" / "papermill").write_text(f"#!{elsewhere}/bin/python\n")
    copied = home.with_name("copied")
    shutil.copytree(home, copied)
    for folder in (home, copied):
        assert make(folder, "-n", "setup", f"VENV={elsewhere}") == "make: Nothing to be done for 'setup'.\n"
    elsewhere.rename(home.parent / "moved")
    assert ".venv was made for" not in make(home, "-n", "setup", f"VENV={home.parent}/moved")
    assert make(home, "-n", "setup", f"VENV={home.parent}/moved").endswith(
        f"lib/venv.py {home.parent}/moved\ntouch {home.parent}/moved/.ready\n"
    )


def test_a_venv_that_is_a_link_is_somebodys_choice(home):
    (home / ".venv").rename(home / "elsewhere")
    (home / ".venv").symlink_to("elsewhere")
    (home / ".venv" / "bin" / "papermill").unlink()
    assert make(home, "-n", "setup") == "make: Nothing to be done for 'setup'.\n"


def test_variables_for_other_pythons_reach_none_of_makes_programs(home):
    (home / "show.mk").write_text("include Makefile\nshow:\n\t@env\n")
    foreign = ("PYTHONPATH", "PYTHONSTARTUP", "PYTHONHOME", "PYTHONOPTIMIZE", "PYTHONSAFEPATH", "MPLBACKEND")
    shown = make(home, "-f", "show.mk", "show", **dict.fromkeys(foreign, "/theirs"), HOME="/mine").splitlines()
    assert f"PYTHONPATH={home}" in shown and "HOME=/mine" in shown
    assert not [line for line in shown if line.endswith("=/theirs")]


def test_clean_takes_caches_and_executed_notebooks_and_nothing_else(home):
    run = "reports/quick/runs/k3"
    kept = ("notebooks/my analysis/own.ipynb", "notebooks/my/own.ipynb", "lib/a.py", "tests/b.py")
    kept += (f"{run}/result.json", f"{run}/checkpoint.pt", "reports/quick/index.html")
    gone = ("notebooks/my analysis/.ipynb_checkpoints/own.ipynb", "lib/data/__pycache__/a.pyc", ".mypy_cache/x")
    gone += (f"{run}/train.ipynb",)
    for name in (*kept, *gone):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).touch()
    assert make(home, "clean") == ""
    assert all((home / name).exists() for name in kept) and not any((home / name).exists() for name in gone)
