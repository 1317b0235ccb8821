"""The repository itself: pins, notebooks without outputs, nothing ignored that is source, rules of the layout."""

import ast
import subprocess
import sys
import tomllib

import nbformat
import pytest
import yaml

from lib import readme, records
from lib.study import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = sorted((ROOT / "lib").glob("*.py"))


def test_conda_and_pip_users_get_the_same_pins():
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    (pip,) = [item["pip"] for item in environment["dependencies"] if isinstance(item, dict)]
    assert pip == [*pins, "--editable ."]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_is_committed_as_nobody_has_run_it(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert sum("parameters" in cell.metadata.get("tags", ()) for cell in code) == 1
    lengths = sorted(
        len(cell.source.splitlines()) for cell in code if "parameters" not in cell.metadata.get("tags", ())
    )
    assert lengths[len(lengths) // 2] <= 6
    assert not any("class " in cell.source for cell in code)


def test_git_keeps_the_source_and_the_records_and_nothing_else_of_a_run():
    def ignored(*paths):
        done = subprocess.run(["git", "check-ignore", *paths], cwd=ROOT, capture_output=True, text=True)
        return set(done.stdout.split())

    run = "reports/quick/runs/k9-p1-seed0"
    assert not ignored(
        "lib/model.py", "lib/fast.c", f"{run}/result.json", f"{run}/arrays.npz", "reports/quick/index.html"
    )
    left_out = {
        f"{run}/{name}" for name in ("train.ipynb", "checkpoint.pt", "weights.safetensors", ".lock", "progress.json")
    }
    left_out |= {"data/cifar-10.npz", ".venv/bin/python", "reports/quick/summary.ipynb"}
    assert ignored(*left_out) == left_out


# What reads records, builds the page or starts runs.
READERS = (
    "params", "study", "paper", "owner", "records", "stats", "tables", "words", "figures", "show", "report", "runs",
    "papermill_plugin", "run_figures", "readme",
)  # fmt: skip


def imports(path):
    """Modules of lib that a file imports at its top, and whether it imports torch there."""
    names, torch = set(), False
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module == "lib":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lib."):
            names.add(node.module.split(".")[1])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            words = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            torch |= any(word.split(".")[0] in ("torch", "torchvision", "timm") for word in words)
    return names, torch


def test_what_reads_records_imports_no_torch_not_even_through_another_module():
    seen, todo = set(), set(READERS)
    while todo:
        name = todo.pop()
        seen.add(name)
        names, torch = imports(ROOT / "lib" / f"{name}.py")
        assert not torch, f"lib/{name}.py imports torch"
        todo |= names - seen


def test_the_readme_says_what_the_published_records_say(monkeypatch):
    monkeypatch.setattr(records, "REPORTS", ROOT / "reports" / "published")
    text = readme.README.read_text(encoding="utf-8")
    assert readme.filled(text) == text


def test_imports_run_in_no_circle():
    graph = {path.stem: imports(path)[0] - {path.stem} for path in MODULES}
    done = set()
    while left := {name for name in graph if name not in done}:
        free = {name for name in left if graph[name] <= done}
        assert free, f"a circle among {sorted(left)}"
        done |= free


def test_params_and_paper_need_the_standard_library_only():
    for name in ("params", "paper"):
        for node in ast.walk(ast.parse((ROOT / "lib" / f"{name}.py").read_text())):
            if isinstance(node, ast.Import):
                assert all(alias.name.split(".")[0] in sys.stdlib_module_names for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in {*sys.stdlib_module_names, "lib"}
