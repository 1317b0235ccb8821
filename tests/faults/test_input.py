"""Mistakes and malice on papermill's command line, and a clone of the repository."""

import subprocess
import sys

import papermill.cli  # loads the plugin
import pytest

from lib import records
from lib.study import ROOT

MANY = "1" + "0" * 5000
WORDS = {
    9: [
        ("-y", "- a"), ("-y", "5"), ("-y", "a: [1"), ("-y", "1: 2"), ("-y", "? [1]\n: 2"), ("-y", "a: \0"),
        ("-y", "lr: 2001-99-99"), ("-y", "lr: 1\nlr: 2"), ("-y", "kernel: !!python/object/apply:os.getpid []"),
        ("-f", "params"), ("-b", "!!!"), ("-b", "a"), ("-y", f"{{lr: {MANY}}}"),
        ("-p", "seed", MANY), ("-y", "kernel: [9]"), ("-y", "seed: 1.0e+400"),
    ],
    10: [("-p", "study", "../x"), ("-p", "study", "a\nb"), ("-p", "setting", "/etc/x"), ("-p", "study", ".")],
    11: [
        ("-p", "x=1;import os", "1"), ("-p", "PAPERMILL_X=1;import os", "1"), ("-y", "{'a\\nb': 1}"),
        ("-r", "import", "1"), ("-r", "__class__", "1"), ("-pkernel=1;import os", "9"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(words, marks=pytest.mark.fault(number, f"{len(WORDS[number])} command lines for papermill"))
        for number in WORDS
        for words in WORDS[number]
    ],
    ids=str,
)
def test_it_is_one_line_and_nothing_is_written(monkeypatch, tmp_path, capsys, seen, words):
    monkeypatch.setattr(records, "REPORTS", tmp_path / "reports")
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as end:
        papermill.cli.papermill.main(["notebooks/train.ipynb", *words])
    line = capsys.readouterr().err
    assert end.value.code == 2
    assert line.startswith("train.ipynb: ") and line.count("\n") == 1
    assert not list(tmp_path.iterdir())
    seen(f"{' '.join(words)[:30]!r}: {line.strip().removeprefix('train.ipynb: ')[:70]!r}")


@pytest.mark.fault(11, "papermill with names that would create a file")
@pytest.mark.parametrize("prefix", ["x", "PAPERMILL_X"])
def test_a_crafted_name_is_not_executed(tmp_path, seen, prefix):
    trap, output = tmp_path / "executed", tmp_path / "output.ipynb"
    words = ["notebooks/train.ipynb", str(output), "-p", f"{prefix}=1;import os;os.mkdir({str(trap)!r})\ny", "1"]
    command = [sys.executable, "-m", "papermill", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and done.stderr.startswith("train.ipynb: ")
    assert not trap.exists() and not output.exists()
    seen(f"{prefix}=1;import os...: exit 2, no notebook written, nothing executed")


@pytest.mark.fault(39, "git clone")
def test_a_clone_holds_the_source(tmp_path, seen):
    if not (ROOT / ".git").exists():
        pytest.skip("this is no git checkout")
    subprocess.run(["git", "clone", "-q", "--no-hardlinks", str(ROOT), str(tmp_path / "clone")], check=True)
    clone = tmp_path / "clone"
    kinds = (".py", ".c", ".h", ".csv", ".js", ".html", ".css")

    def source(root) -> set[str]:
        files = (path.relative_to(root) for path in (root / "lib").rglob("*.*") if path.suffix in kinds)
        return set(map(str, files))

    others = ["git", "ls-files", "--others", "--exclude-standard", "lib"]  # not those that git is told to ignore
    untracked = subprocess.run(others, cwd=ROOT, capture_output=True, text=True).stdout.split()
    ours = source(ROOT) - set(untracked)
    assert source(clone) == ours and {"lib/data/draws.py", "lib/native/gelu.h"} <= ours
    for notebook in (clone / "notebooks").glob("*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        assert '"output_type"' not in text and '"execution_count": 1' not in text
    seen(f"lib/ has its {len(ours)} files, no notebook an output")
