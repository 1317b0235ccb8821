"""`papermill notebooks/train.ipynb ...` as a user types it: at a terminal, redirected, from two folders, mistyped."""

import asyncio
import dataclasses
import gc
import logging
import re

import nbformat
import papermill.cli  # loads the plugin
import pytest
from nbclient.exceptions import DeadKernelError
from nbformat.reader import NotJSONError
from nbformat.v4 import new_code_cell

from copy_of import Copy
from lib import records, study
from lib.params import Params, UserError
from lib.runs import papermill_plugin
from lib.runs.papermill_plugin import KernelError

SMOKE = ("-f", "params/studies/smoke.yaml", "-p", "patch", "4", "-p", "epochs", "1")
RUN = "reports/smoke/runs/k9-p4-epochs1-seed0"


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("papermill") / "a copy, with ümläuts")


def test_the_literal_command_starts_the_study_as_written_and_says_how_long_it_takes(copy):
    words = ("papermill", "notebooks/train.ipynb", "-p", "kernel", "9")
    _, shown = copy.at_terminal(*words, until=b"the same command goes on")
    assert "no output path given, the executed notebook goes to " in shown
    assert "own/k9-p1-seed0: ConvMixer-256/8, k=9, p=1, 30 epochs; about " in shown
    assert "Smaller: -f params/studies/smoke.yaml" in shown


def test_at_a_terminal_a_small_run_finishes_and_its_record_appears_beside_the_notebook(copy):
    status, shown = copy.at_terminal("papermill", "notebooks/train.ipynb", *SMOKE)
    assert status == 0, shown
    assert "k9-p4-epochs1-seed0  epoch 1/1 " in shown and " on the test set" in shown
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
    (
        ("-p", "dataset", "cifar-100"),
        "dataset=cifar-100: give cifar10, cifar100 or folder:PATH, did you mean",
    ),
    (("-p", "x=1;import os", "1"), "x=1;import os: unknown parameter"),
    (("-f", "params/studies/none.yaml"), "params/studies/none.yaml: no such file"),
    (("-y", "{patch: 3}"), "patch=3: an image of 32 x 32 needs one of"),
]


@pytest.fixture
def typed(monkeypatch, tmp_path):
    """Types a call of papermill in the repository: what would be executed, or SystemExit."""
    executed = {}
    monkeypatch.setattr(records, "REPORTS", tmp_path / "reports")
    monkeypatch.chdir(study.ROOT)
    monkeypatch.setattr(papermill.cli, "execute_notebook", lambda **options: executed.update(options))
    return lambda *words: papermill.cli.papermill.main(words, standalone_mode=False) or executed


@pytest.mark.parametrize("words, line", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(typed, tmp_path, capsys, words, line):
    with pytest.raises(SystemExit) as end:
        typed("notebooks/train.ipynb", *words)
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"train.ipynb: {line}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_mistake_ends_the_real_program_too(copy):
    done = copy.run("papermill", "notebooks/train.ipynb", "-p", "kernal", "7")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "train.ipynb: kernal: unknown parameter, did you mean kernel?\n"


def test_an_error_inside_the_notebook_is_one_line_too(copy):
    done = copy.run("papermill", "notebooks/train.ipynb", *SMOKE, "-p", "device", "mps")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("train.ipynb: device=mps: there is none here")
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


def test_other_notebooks_are_executed_as_they_are(typed, tmp_path):
    executed = typed(str(tmp_path / "other.ipynb"), str(tmp_path / "x" / "output.ipynb"), "-p", "kernal", "7")
    assert executed["parameters"] == {"kernal": 7}
    assert (executed["engine_name"], executed["kernel_name"], executed["stdout_file"]) == (None, None, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("before", [(), ("-p", "kernel", "7"), ("--log-level", "ERROR"), ("-k", "python3")])
def test_without_an_output_path_it_goes_beside_the_record_and_every_parameter_is_passed(typed, tmp_path, before):
    words = (*before, "notebooks/train.ipynb", "-p", "patch", "2", "-y", "{seeds: [1], lr: 1e-2}")
    executed = typed(*words)
    params = Params(kernel=7 if "7" in before else 9, patch=2, lr=0.01)
    assert executed["parameters"] == dataclasses.asdict(params)
    folder = tmp_path / "reports" / "own" / "runs" / f"k{params.kernel}-p2-lr0.01-seed0"
    assert executed["output_path"] == str(folder / "train.ipynb") and folder.is_dir()
    assert executed["stdout_file"] and not executed["progress_bar"]
    (folder / "result.json").write_text("{}")
    assert typed(*words)["output_path"] == str(folder / "train-again.ipynb")  # the notebook that trained it stays


@pytest.mark.parametrize("options", [(), ("-k", "conda-env-x-py", "--engine", "nbclient")])
@pytest.mark.parametrize("notebook", ["train", "explore"])
def test_the_kernel_is_this_environments_and_the_folder_for_the_output_is_made(typed, tmp_path, notebook, options):
    output = tmp_path / "no" / "such" / "output.ipynb"
    executed = typed(f"notebooks/{notebook}.ipynb", str(output), *options)
    assert (executed["engine_name"], executed["kernel_name"]) == ("convmixer-cifar10", "python3")
    assert executed["output_path"] == str(output) and output.parent.is_dir()


@pytest.mark.parametrize(
    "error, line, status",
    [
        (NotADirectoryError(20, "Not a directory", "a/file"), "a/file: Not a directory", 1),
        (FileNotFoundError("output folder x{kernel} doesn't exist."), "output folder x{kernel} doesn't exist.", 1),
        (NotJSONError("Notebook does not appear to be JSON"), "Notebook does not appear to be JSON", 1),
        (KernelError("the kernel did not start (x)"), "the kernel did not start (x)", 1),
        (KeyboardInterrupt(), "interrupted; the same command goes on", 130),
    ],
)
def test_what_papermill_meets_is_one_line(typed, monkeypatch, capsys, error, line, status):
    def fail(**_):
        raise error

    monkeypatch.setattr(papermill.cli, "execute_notebook", fail)
    with pytest.raises(SystemExit) as end:
        typed("notebooks/train.ipynb", "{kernel}.ipynb")
    assert end.value.code == status
    assert capsys.readouterr().err.startswith(f"train.ipynb: {line}")


def test_a_papermill_of_another_folder_refuses_this_ones_notebook(typed, capsys, copy):
    """As in a folder that was copied with its .venv, whose programs still are the old folder's."""
    with pytest.raises(SystemExit) as end:
        typed(str(copy.root / "notebooks" / "train.ipynb"))
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        f"train.ipynb: this papermill is the one of {study.ROOT}; `make setup` gives {copy.root} its own, in .venv\n"
    )


@pytest.mark.parametrize(
    "changed, line",
    [
        (lambda cells: cells[2].metadata.pop("tags"), "not one cell has the tag `parameters`; `git checkout "),
        (lambda cells: cells.append(cells[2]), "not one cell has the tag `parameters`; `git checkout "),
        (lambda cells: cells.append(new_code_cell("lr = 0.1")), "another cell than the first sets lr too; "),
    ],
)
def test_a_notebook_that_would_not_train_what_it_is_given_is_refused_before_a_kernel_starts(changed, line):
    notebook = nbformat.read(study.ROOT / "notebooks" / "train.ipynb", as_version=4)
    changed(notebook.cells)
    notebook.metadata.papermill = {"parameters": dataclasses.asdict(Params())}
    with pytest.raises(UserError, match=line):
        papermill_plugin.Engine.execute_notebook(notebook, "python3", output_path="/nowhere")


def test_every_parameter_is_shown_with_its_type_its_default_and_its_meaning(copy):
    """papermill's own --help-notebook, which reads the parameters cell line by line."""
    text = copy.run("papermill", "notebooks/train.ipynb", "--help-notebook").stdout
    entries = dict(re.findall(r"^  (\w+: \w+ \(default .*?\)) *\n? *(.*)$", text, re.MULTILINE))
    for field in dataclasses.fields(Params):
        default = f'"{field.default}"' if field.type is str else field.default
        assert entries.pop(f"{field.name}: {field.type.__name__} (default {default})")
    assert not entries
