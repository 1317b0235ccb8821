"""The documents for people: their links lead somewhere, their Python runs, and the fields they list are a record's."""

import os
import re
import subprocess
import sys

import pytest

from lib import records
from lib.data.datasets import of_folder
from lib.runs import run
from lib.study import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def sections(text: str) -> dict[str, str]:
    """The text of a document by its headings."""
    parts = re.split(r"^## (.*)$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def listed(text: str) -> list[str]:
    """The names in the first columns of a document's tables."""
    return [name for row in re.findall(r"^\| (`.*?) \|", text, re.MULTILINE) for name in re.findall(r"`([^`]+)`", row)]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_a_link_leads_to_a_file_that_is_there(path):
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text(encoding="utf-8"))
    there = [link for link in links if not link.startswith("https://")]
    assert not [link for link in there if not (path.parent / link).exists()]


def test_the_readme_leads_to_every_document():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert not [path.name for path in DOCUMENTS[1:] if f"]({path.relative_to(ROOT)})" not in text]


@pytest.mark.parametrize("name", ["records", "notebook"])
def test_the_python_of_a_document_runs_as_it_is_printed(name, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) > 3
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CONVMIXER_REPORTS": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", "\n".join(blocks)], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr


def test_every_field_of_a_record_and_no_other_is_in_the_document(reports, tiny):
    record = run.run(tiny(select="best_test"), lambda text: None)
    fields = set(record)
    fields |= {f"history.{name}" for name in record["history"][0]}
    fields |= {f"environment.{name}" for name in record["environment"]}
    parts = sections((ROOT / "docs" / "records.md").read_text(encoding="utf-8"))
    assert sorted(listed(parts["`result.json`"])) == sorted(fields)
    assert sorted(listed(parts["`arrays.npz`"])) == sorted(records.read_arrays(record))


def test_the_pictures_that_a_document_draws_are_a_data_set(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(encoding="utf-8"), re.DOTALL)
    subprocess.run([sys.executable, "-c", block], cwd=tmp_path, check=True)
    data = of_folder(tmp_path / "data" / "shapes")
    assert data.classes == ("circle", "square", "triangle") and len(data.train_images) == 240
