"""The repository itself: pins, notebooks without outputs, nothing ignored that is source, rules of the layout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import made
from lib import records
from lib import study as studies
from lib.report import readme
from lib.study import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "lib").rglob("*.py"))


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = PROJECT["project"]["dependencies"]
CONDA = {"torch": "pytorch", "matplotlib": "matplotlib-base", "seaborn": "seaborn-base"}  # other names there


def test_conda_and_pip_users_get_the_same_pins():
    pins = [re.fullmatch(r"([\w-]+)(.+)", pin).groups() for pin in PINS]
    asked = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    ours = [f"{CONDA.get(name, name)} {version}" for name, version in pins]
    assert asked == ["python >=3.11", *ours, "pip", {"pip": ["--editable ."]}]


def test_the_lock_holds_what_is_asked_for_and_a_digest_of_each_package():
    entries = re.split(r"\n(?=\w)", (ROOT / "requirements.lock").read_text())[1:]
    assert all(re.match(r"[\w.-]+==", entry) and "--hash=sha256:" in entry for entry in entries)
    locked: dict[str, set[str]] = {}
    for entry in entries:
        name, version = re.match(r"([\w.-]+)==([^\s;]+)", entry).groups()
        locked.setdefault(canonicalize_name(name), set()).add(version)
    for pin in map(Requirement, [*PINS, *PROJECT["project"]["optional-dependencies"]["dev"]]):
        versions = locked[canonicalize_name(pin.name)]
        assert all(pin.specifier.contains(version) for version in versions), f"{pin}: {versions}"


def test_a_page_is_built_with_the_same_pins_as_the_runs():
    assert set(PROJECT["dependency-groups"]["report"]) < set(PINS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_as_nobody_has_run_it(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    parameters = sum("parameters" in cell.metadata.get("tags", ()) for cell in code)
    assert parameters == (path.name != "front.ipynb")  # which is about everything that is there
    lengths = sorted(
        len(cell.source.splitlines()) for cell in code if "parameters" not in cell.metadata.get("tags", ())
    )
    assert lengths[len(lengths) // 2] <= 6
    assert not any("class " in cell.source for cell in code)


@pytest.mark.skipif(not shutil.which("git"), reason="git is not installed")
def test_git_keeps_the_source_and_the_records_and_nothing_else_of_a_run(tmp_path):
    """In a repository of its own: a ZIP download is none, and a checkout may be another owner's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    clean |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    subprocess.run(["git", "init", "-q", tmp_path], env=clean, check=True)
    shutil.copy(ROOT / ".gitignore", tmp_path)

    def ignored(*paths):
        command = ["git", "check-ignore", *paths]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True)
        assert done.returncode in (0, 1), done.stderr  # 1: none of them
        return set(done.stdout.split())

    run = "reports/quick/runs/k9-p1-seed0"
    assert not ignored(
        "lib/model.py", "lib/native/layers.c", f"{run}/result.json", f"{run}/arrays.npz", "reports/quick/index.html"
    )
    published = "reports/published/quick/runs/k9-p1-seed0"
    assert not ignored(f"{published}/weights.safetensors", f"{published}/README.md")
    left_out = {
        f"{run}/{name}" for name in ("train.ipynb", "checkpoint.pt", "weights.safetensors", ".lock", "progress.json")
    }
    left_out |= {"data/cifar-10.npz", ".venv/bin/python", "reports/quick/summary.ipynb"}
    assert ignored(*left_out) == left_out


def test_documents_containers_and_workflows_ask_make_only_for_what_it_has():
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    names = ("*.md", "docs/*.md", "Dockerfile", ".devcontainer/*", ".ci/run", ".pre-commit*", ".github/workflows/*")
    found = {path: path.read_text(encoding="utf-8") for name in names for path in ROOT.glob(name)}
    command = re.compile(r"""(?:^ *|[`'"[]|&& |RUN |run: |entry: )make(?: |", ")([a-z-]+)""", re.MULTILINE)
    asked = {path.name: set(command.findall(text)) - set(targets) for path, text in found.items()}
    assert not any(asked.values()), asked
    assert command.findall(found[ROOT / "Dockerfile"]) == ["report", "setup", "report"]


# What each room of lib may import from the others at the top of its files; the files of lib/ itself go by name.
# Whatever stands further down may import what stands above it, and nothing else.
BELOW = {
    "params": (),
    "venv": (),
    "files": (),
    "study": ("params",),
    "records": ("params", "study", "files"),
    "kernel": ("study",),
    "machine": ("study",),
    "model": ("params",),
    "native": ("params", "study", "model"),
    "data": ("params", "study", "files", "records", "native"),
    "checkpoint": ("params", "files", "records"),
    "explore": ("params", "study", "records", "machine", "model", "data"),
    "train": ("params", "records", "model", "data", "native", "checkpoint", "machine"),
    "runs": (
        "params", "study", "files", "records", "kernel", "machine", "model", "native", "data", "checkpoint", "explore",
        "train",
    ),
    "report": ("params", "study", "files", "records", "kernel"),
    "predict": ("params", "study", "records", "data", "explore"),
    "verify": ("params", "study", "records", "native", "data", "explore", "train", "report"),
}  # fmt: skip
TORCH = ("torch", "torchvision", "timm", "safetensors")


def imports(path, anywhere=False):
    """The modules that a file imports at its top (or anywhere), by their full names."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (node.module == "lib" or path_of(node.module).is_dir()):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def path_of(module):
    return ROOT.joinpath(*module.split("."))


def room(module):
    """lib.data.loader -> data."""
    return module.split(".")[1]


def module_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


@pytest.mark.parametrize("path", MODULES, ids=module_of)
def test_imports_go_downwards_only(path):
    here = room(module_of(path))
    if here != "__init__":
        above = {room(name) for name in imports(path) if name.startswith("lib.")} - {here, *BELOW[here]}
        assert not above, f"lib's {here} must not import {above}"


def test_imports_run_in_no_circle():
    graph = {module_of(path): {name for name in imports(path) if name.startswith("lib.")} for path in MODULES}
    done = set()
    while left := graph.keys() - done:
        free = {name for name in left if graph[name] <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free


def test_a_report_is_built_without_torch_and_without_the_rooms_that_make_records():
    """Neither by itself nor through what it imports; all_runs starts runs and needs no torch itself."""
    seen, todo = set(), {module_of(path) for path in MODULES if room(module_of(path)) == "report"}
    todo |= {"lib.runs.all_runs", "lib.runs.papermill_plugin", "lib.runs.collect"}
    while todo:
        name = todo.pop()
        seen.add(name)
        found = set(imports(path_of(name).with_suffix(".py")))
        assert not any(other.split(".")[0] in TORCH for other in found), f"{name} imports torch"
        todo |= {other for other in found if other.startswith("lib.")} - seen


def test_the_readme_says_what_the_published_records_say(monkeypatch):
    monkeypatch.setattr(records, "REPORTS", ROOT / "reports" / "published")
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text) == text


def test_the_readme_shows_laptop_once_each_setting_has_a_run(home):
    quick, laptop = (studies.load(name) for name in ("quick", "laptop"))
    made.fill(quick)
    made.fill(laptop, skip={run.name for run in laptop.runs if "patch-4" in run.settings})
    assert "| ours, `quick`: 32/4, " in readme.block() and "laptop" not in readme.block().split("\n")[2]
    made.fill(laptop, skip={run.name for run in laptop.runs if run.params.seed})
    assert "| ours, `laptop`: 128/4, 10 epochs (%) |" in readme.block() and "ours, `quick`" not in readme.block()


def test_parameters_published_figures_and_the_set_up_need_the_standard_library_only():
    for name in ("params", "report/published", "venv"):
        for module in imports(ROOT / "lib" / f"{name}.py", anywhere=True):
            assert module.split(".")[0] in {*sys.stdlib_module_names, "lib"}


def test_each_fault_names_fast_tests_that_there_are():
    table = {}
    exec((ROOT / "tests" / "faults" / "table.py").read_text(), table)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:xdist", "tests"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    tests = [line.partition("::") for line in done.stdout.splitlines() if "::" in line]
    assert len(tests) > 500, done.stdout[-500:]
    for number, checks in table["FAST"].items():
        for file, part in checks:
            assert any(place == f"tests/{file}" and part in name for place, _, name in tests), (number, file, part)
