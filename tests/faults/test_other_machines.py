"""What a shell, an editor or a home folder holds, a notebook that was saved, a folder that was copied or is torn."""

import json
import os
import shutil
import subprocess

import nbformat
import pytest
from test_stops import Home

from lib import records

pytestmark = pytest.mark.timeout(600)

# One run that trains in a second.
STUDY = """# For tests: one small run.
study: one
settings: [kernel-3: {patch: 8}]
dim: 8
depth: 1
epochs: 1
train_size: 320
val_size: 200
weight_decay: 0.05
"""
RUN = "k3-p8-seed0"


@pytest.fixture
def home(tmp_path):
    home = Home(tmp_path / "home")
    (home.root / "params" / "studies" / "one.yaml").write_text(STUDY)
    return home


def make(home, *words, **variables):
    environment = {**home.environment, **variables}
    return subprocess.run(
        home.make(*words), env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )


def edit(home, name, change):
    path = home.root / "notebooks" / name
    notebook = nbformat.read(path, as_version=4)
    change(notebook)
    nbformat.write(notebook, path)


def weights(home, run=RUN):
    return (home.root / "reports" / "one" / "runs" / run / records.WEIGHTS).read_bytes()


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    """The weights where nothing is unusual."""
    home = Home(tmp_path_factory.mktemp("usual") / "home")
    (home.root / "params" / "studies" / "one.yaml").write_text(STUDY)
    assert make(home, "runs", "STUDY=one").returncode == 0
    return weights(home)


def strange(folder) -> dict[str, str]:
    """Variables and a home that name other projects' files, each of which would stop or change a run."""
    torn = "raise SystemExit('a stranger is imported')\n"
    startup = "original_ps1 = '>>> '\nimport torch\ntorch.set_default_dtype(torch.float64)\n"
    files = {
        "modules/yaml.py": torn, "modules/lib/__init__.py": torn, "modules/ipykernel.py": torn,
        "modules/sitecustomize.py": torn, "home/matplotlibrc": "figure.figsize: nonsense\n",
        "home/.ipython/profile_default/startup/00.py": startup, "home/startup.py": startup,
        "home/.ipython/profile_default/ipython_kernel_config.py": "c.IPKernelApp.exec_lines = ['kernel = 63']\n",
        "home/.local/share/jupyter/kernels/python3/kernel.json": json.dumps(
            {"argv": ["false", "{connection_file}"], "display_name": "not this one", "language": "python"}
        ),
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    home = folder / "home"
    return {
        "HOME": str(home), "XDG_CACHE_HOME": os.path.expanduser("~/.cache"), "PYTHONSTARTUP": str(home / "startup.py"),
        "MPLBACKEND": "nonsense", "MATPLOTLIBRC": str(home / "matplotlibrc"), "PYTHONWARNINGS": "error",
        "PYTHONOPTIMIZE": "2", "PYTHONINSPECT": "1", "PYTHONSAFEPATH": "1", "PYTHONUTF8": "0",
        "JUPYTER_PATH": str(home / ".local/share/jupyter"), "JUPYTER_RUNTIME_DIR": "/proc/none",
        "JUPYTER_CONFIG_DIR": "/proc/none", "IPYTHONDIR": str(home / ".ipython"),
    }  # fmt: skip


@pytest.mark.fault(41, "make report where PYTHONPATH, PYTHON..., IPython, Jupyter and matplotlib are set for others")
def test_make_does_not_see_what_is_for_others(home, usual, tmp_path, seen):
    variables = strange(tmp_path / "strange")
    done = make(home, "report", "STUDY=one", **variables, PYTHONPATH=str(tmp_path / "strange" / "modules"))
    assert done.returncode == 0, done.stderr
    assert weights(home) == usual
    assert (home.root / "reports" / "one" / "index.html").exists()
    notebook = nbformat.read(home.root / "reports" / "one" / "summary.ipynb", as_version=4)
    assert not [o for cell in notebook.cells for o in cell.get("outputs", ()) if o.output_type == "stream"]
    seen("make: trained to the same bits, the page is there")


@pytest.mark.fault(41, "modules in the repository's folder that are named like packages, and like Python's own")
def test_what_lies_beside_lib_hides_no_package(home, usual, seen):
    for name in ("yaml", "papermill", "ipykernel", "nbclient", "torch", "numpy", "pandas", "lock", "random", "json"):
        (home.root / f"{name}.py").write_text("raise SystemExit('a stranger is imported')\n")
    done = make(home, "report", "STUDY=one")
    assert done.returncode == 0, done.stderr
    assert weights(home) == usual
    seen("make: trained to the same bits, the page is there")


@pytest.mark.fault(41, "papermill likewise, started in a folder with a lib and a yaml of its own")
def test_papermill_does_not_pass_on_what_is_for_others(home, usual, tmp_path, seen):
    variables = strange(tmp_path / "strange")
    del variables["PYTHONINSPECT"]  # asks for a prompt after the program
    words = ["-f", str(home.root / "params/studies/one.yaml"), "-p", "kernel", "3", "-p", "patch", "8"]
    done = subprocess.run(
        home.command("papermill", str(home.root / "notebooks" / "train.ipynb"), "no/such/folder/out.ipynb", *words),
        cwd=tmp_path / "strange" / "modules", env={**home.environment, **variables, "PYTHONWARNINGS": "default"},
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert weights(home) == usual
    assert (tmp_path / "strange" / "modules" / "no" / "such" / "folder" / "out.ipynb").exists()
    seen("papermill: trained to the same bits, the folder for the notebook made")


@pytest.mark.fault(42, "both notebooks saved with other values, under another kernel and language, then make report")
def test_a_saved_notebook_changes_no_run_of_a_study(home, usual, seen):
    def save(notebook):
        cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        cell.source = cell.source.replace("float = 0.01  # decoupled", "float = 0.02  # decoupled")
        cell.source = cell.source.replace('"auto"', '"cuda"').replace('"quick"', '"laptop"')
        notebook.metadata.kernelspec = {"name": "conda-env-x-py", "display_name": "x", "language": "R"}
        notebook.metadata.language_info = {"name": "R"}

    edit(home, "train.ipynb", save)
    edit(home, "summary.ipynb", save)
    done = make(home, "report", "STUDY=one")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in (home.root / "reports" / "one" / "runs").iterdir()] == [RUN]
    assert weights(home) == usual
    assert "<title>ConvMixer on CIFAR-10: one</title>" in (home.root / "reports" / "one" / "index.html").read_text()
    seen("saved with other values and another kernel: the same run, to the bit")


@pytest.mark.fault(42, "a parameters cell whose tag was lost, in both notebooks")
def test_a_lost_tag_is_one_line(home, seen):
    def lose(notebook):
        for cell in notebook.cells:
            cell.metadata.pop("tags", None)

    edit(home, "train.ipynb", lose)
    edit(home, "summary.ipynb", lose)
    done = make(home, "report", "STUDY=one")
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{RUN}: not finished. train.ipynb: not one cell has the tag `parameters`" in done.stderr
    assert [line for line in lines if line.startswith("report: notebooks/summary.ipynb: not one cell has the tag")]
    assert not (home.root / "reports" / "one" / "runs" / RUN / records.RESULT).exists()
    seen("a lost tag: one line each")


@pytest.mark.fault(
    43, "a copy with its .venv beside the original: lib.runs and lib.report there, papermill of the original"
)
def test_a_copy_has_its_own_records(home, usual, tmp_path, seen):
    assert make(home, "runs", "STUDY=one").returncode == 0
    copy = tmp_path / "copy"
    shutil.copytree(home.root, copy, symlinks=True, ignore=shutil.ignore_patterns("reports"))
    variables = {name: value for name, value in home.environment.items() if name != "PYTHONPATH"}

    def run(*words):
        command = home.command("python", "-m", *words)
        return subprocess.run(command, cwd=copy, env=variables, capture_output=True, text=True, timeout=300)

    assert "0 of 1 runs of one are finished" in run("lib.runs", "one", "--status").stdout
    assert run("lib.report", "one").returncode == 0
    text = (copy / "reports" / "one" / "index.html").read_text()
    assert "<code>make runs STUDY=one</code>" in text
    assert run("lib.runs", "one").returncode == 0
    assert (copy / "reports" / "one" / "runs" / RUN / records.WEIGHTS).read_bytes() == usual
    refused = subprocess.run(
        home.command("papermill", str(copy / "notebooks" / "train.ipynb"), "-p", "kernel", "3"),
        env=home.environment, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert f"this papermill is the one of {home.root}; `make setup` gives {copy} its own" in refused.stderr
    seen("a copy trains and reports its own; the old papermill refuses its notebook")


# What is torn, and what must be said of it.
TORN = {
    "lib/report/run_figures.py": "ImportError: torn",
    "lib/model.py": "ImportError: torn",
    "lib/__init__.py": "train.ipynb: the kernel did not start: Kernel died before replying to kernel_info "
    "(ImportError: torn)",
    "lib/runs/papermill_plugin.py": "ImportError: torn",
}


@pytest.mark.fault(44, "an import that fails in the kernel, in papermill and before the kernel answers")
@pytest.mark.parametrize("file", TORN)
def test_a_failure_before_training_leaves_its_reason(home, seen, file):
    text = "raise ImportError('torn')\n"
    if file == "lib/__init__.py":  # in kernels alone
        text = f"import sys\nif 'ipykernel' in ' '.join(sys.orig_argv):\n    {text}{(home.root / file).read_text()}"
    (home.root / file).write_text(text)
    done = make(home, "runs", "STUDY=one")
    assert done.returncode == 2
    assert f"{RUN}: not finished. {TORN[file]}" in done.stderr.splitlines()
    shown = make(home, "status", "STUDY=one").stdout
    assert f"{RUN}: {TORN[file]}" in shown.splitlines() and "failed" in shown
    if file == "lib/model.py":
        assert make(home, "report", "STUDY=one").returncode == 2
        assert TORN[file] in (home.root / "reports" / "one" / "index.html").read_text()
    seen(f"{file}: '{TORN[file][:60]}'")
