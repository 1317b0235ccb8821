"""`papermill notebooks/train.ipynb ...` as a user types it: at a terminal, redirected, from two folders, mistyped."""

import asyncio
import gc
import logging
import os
import pty
import subprocess

import papermill.engines  # noqa: F401  as in real life: it is papermill that loads the plugin
import pytest
from nbclient.exceptions import DeadKernelError

from copy_of import Copy
from lib import records, study
from lib.runs import papermill_plugin
from lib.runs.papermill_plugin import prepare

SMOKE = ("-f", "params/studies/smoke.yaml", "-p", "patch", "4", "-p", "epochs", "1")
RUN = "reports/smoke/runs/k9-p4-epochs1-seed0"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("papermill") / "a copy, with ümläuts")


def at_terminal(copy, *words, folder=".", until=None, timeout=240):
    """Runs a program at a pseudo-terminal; its exit status and everything that it showed, up to the word `until`."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        copy.command(*words), cwd=copy.root / folder, env=copy.environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown = b""
    try:
        while block := os.read(ours, 4096):
            shown += block
            if until and until in shown:
                break
    except OSError:
        pass  # the terminal of a program that has ended
    if until:
        process.terminate()
    os.close(ours)
    return process.wait(timeout), shown.decode()


def test_the_literal_command_starts_the_study_as_written_and_says_how_long_it_takes(copy):
    _, shown = at_terminal(
        copy, "papermill", "notebooks/train.ipynb", "-p", "kernel", "9", until=b"the same command goes on"
    )
    assert "no output path given, the executed notebook goes to " in shown
    assert "own/k9-p1-seed0: ConvMixer-256/8, kernel 9, patch 1, 30 epochs; about " in shown
    assert "Smaller: -f params/studies/smoke.yaml" in shown


def test_at_a_terminal_a_small_run_finishes_and_its_record_appears_beside_the_notebook(copy):
    status, shown = at_terminal(copy, "papermill", "notebooks/train.ipynb", *SMOKE)
    assert status == 0, shown
    assert "epoch 1/1  loss " in shown and " on the test set" in shown
    assert {"result.json", "arrays.npz", "train.ipynb"} <= {p.name for p in (copy.root / RUN).iterdir()}


def test_redirected_from_the_notebooks_folder_and_with_an_output_path(copy):
    words = [word.replace("params", "../params") for word in SMOKE]
    done = copy.run("papermill", "train.ipynb", "executed here.ipynb", *words, "-p", "seed", "7", folder="notebooks")
    assert done.returncode == 0, done.stderr
    assert "epoch 1/1" in done.stdout and '"cell_type"' not in done.stdout
    assert (copy.root / "notebooks" / "executed here.ipynb").exists()
    assert (copy.root / "reports/smoke/runs/k9-p4-epochs1-seed7/result.json").exists()
    assert (copy.root / "notebooks" / "train.ipynb").read_text().count('"execution_count": null') > 5  # untouched


MISTAKES = [
    (("-p", "kernal", "7"), "kernal: unknown parameter, did you mean kernel?"),
    (("-p", "kernel", "abc"), "kernel='abc': give a whole number"),
    (("-p", "x=1;import os", "1"), "x=1;import os: unknown parameter"),
    (("-f", "params/studies/none.yaml"), "params/studies/none.yaml: no such file"),
    (("-y", "{patch: 3}"), "patch=3: an image of 32 x 32 needs one of"),
]


@pytest.mark.parametrize("words, line", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(monkeypatch, tmp_path, capsys, words, line):
    monkeypatch.setattr(records, "REPORTS", tmp_path / "reports")
    monkeypatch.chdir(study.ROOT)
    with pytest.raises(SystemExit) as end:
        prepare(["papermill", "notebooks/train.ipynb", *words])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.ipynb: {line}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_ends_the_real_program_too(copy):
    done = copy.run("papermill", "notebooks/train.ipynb", "-p", "kernal", "7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.ipynb: kernal: unknown parameter, did you mean kernel?\n"


def test_an_error_inside_the_notebook_is_one_line_too(copy):
    done = copy.run("papermill", "notebooks/train.ipynb", *SMOKE, "-p", "randaugment", "rand-m99")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train.ipynb: randaugment=rand-m99: give ")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("error, said", [(DeadKernelError("Kernel died"), 0), (RuntimeError("another"), 1)])
def test_what_waited_for_a_dead_kernel_leaves_no_trace(caplog, error, said):
    """As after Ctrl-C: asyncio complains of a task whose exception nobody has asked for."""

    async def wait():
        raise error

    async def leave():
        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0)
        assert task.done()

    logger = logging.getLogger("asyncio")
    logger.addFilter(papermill_plugin.not_the_end_of_a_kernel)
    try:
        asyncio.run(leave())
        gc.collect()
    finally:
        logger.removeFilter(papermill_plugin.not_the_end_of_a_kernel)
    assert len(caplog.records) == said


@pytest.mark.parametrize(
    "words",
    [
        ("other.ipynb", "-p", "kernal", "7"),
        ("notebooks/train.ipynb", "--help-notebook"),
        ("--version",),
        (),
    ],
)
def test_other_calls_are_left_as_they_are(monkeypatch, words):
    monkeypatch.chdir(study.ROOT)
    assert prepare(["papermill", *words]) == ["papermill", *words]


@pytest.mark.parametrize("before", [(), ("-p", "kernel", "7"), ("--log-level", "ERROR"), ("-k", "python3")])
def test_the_output_path_goes_where_papermill_looks_for_it(monkeypatch, tmp_path, before):
    monkeypatch.setattr(records, "REPORTS", tmp_path)
    monkeypatch.chdir(study.ROOT)
    monkeypatch.setattr(papermill_plugin.sys, "excepthook", None)
    argv = prepare(["papermill", *before, "notebooks/train.ipynb", "-p", "patch", "2"])
    at = argv.index("notebooks/train.ipynb")
    kernel = 7 if "7" in before else 9
    assert argv[at + 1] == str(tmp_path / "own" / "runs" / f"k{kernel}-p2-seed0" / "train.ipynb")
    assert argv[at + 2 :] == ["-p", "patch", "2", "--no-progress-bar", "--stdout-file", "-", "--stderr-file", "-"]
