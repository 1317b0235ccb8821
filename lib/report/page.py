"""`python -m lib.report STUDY`: the records of a study become one offline page, with its figures and tables as files.

`python -m lib.report --front` makes reports/index.html, the page over all studies, in the same way.

reports/<study>/index.html        the page: one file, no network
                summary.ipynb     the executed notebook (not in git)
                figures/*.png, *.svg and tables/*.csv, *.tex

The same records give the same bytes, so git shows a change only where a number changed.
"""

import base64
import re
import sys
from html import escape
from pathlib import Path

from lib import files, kernel, records
from lib import study as studies
from lib.params import ParameterError, Params, UserError
from lib.study import ROOT

NOTEBOOK, FRONT = ROOT / "notebooks" / "summary.ipynb", ROOT / "notebooks" / "front.ipynb"
PAGE, EXECUTED = "index.html", "summary.ipynb"
HIDDEN = {"parameters", "injected-parameters", "hidden"}  # tags of the cells that the page leaves out
CONTENTS = "<!-- contents -->"  # where the template wants them
FOLDERS = {
    "text/csv": ("tables", "csv"), "text/latex": ("tables", "tex"),
    "image/png": ("figures", "png"), "image/svg+xml": ("figures", "svg"),
}  # fmt: skip


class ReportError(UserError):
    """The notebook did not run to its end: one line that names the cell and the error."""


def build(study: str) -> Path:
    """Writes the report of a study; returns the path of its page.

    Raises ParameterError for a study that is not there and ReportError if the notebook fails; then the page, figures
    and tables of the last time stay as they were.
    """
    p = studies.load(study).base  # a bad name or file should be one line, before a kernel is started
    title = f"ConvMixer on {p.data}: {study}"
    return write(NOTEBOOK, {"study": study}, records.study_folder(study), title, p)


def build_front() -> Path:
    """Writes the page over all studies; its path. Raises ReportError if the notebook fails."""
    return write(FRONT, {}, records.REPORTS, "ConvMixer on CIFAR-10, reproduced", Params())


def write(source: Path, parameters: dict, folder: Path, title: str, about: Params) -> Path:
    """Executes a notebook and writes its page, figures and tables into a folder; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    notebook = execute(source, parameters, folder / EXECUTED, about)
    page = html(notebook, title)
    save_files(notebook, folder)
    files.write_bytes(folder / PAGE, page.encode())
    return folder / PAGE


def execute(source: Path, parameters: dict, output: Path, about: Params):
    """Runs a notebook with papermill; returns the executed notebook, which `output` holds too.

    Cells tagged `cifar10` are about what others published; without them a page is `about` other data, and with those
    tagged `other-data` instead. Its first line says which data.
    """
    import papermill
    from nbformat.reader import NotJSONError
    from papermill.iorw import load_notebook_node

    try:
        notebook = load_notebook_node(str(source))
        needless = "other-data" if about.dataset == "cifar10" else "cifar10"
        notebook.cells = [cell for cell in notebook.cells if needless not in cell.metadata.get("tags", ())]
        notebook.cells[0].source = notebook.cells[0].source.replace(Params().data, escape(about.data), 1)
        return papermill.execute_notebook(
            notebook, output, parameters, kernel_name=kernel.NAME, language=kernel.LANGUAGE,
            engine_name=kernel.ENGINE, progress_bar=False, cwd=source.parent,
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        where = f"cell {error.exec_count} of {source.relative_to(ROOT)}"
        raise ReportError(f"{where}: {error.ename}: {error.evalue} (the whole story is in {output})") from None
    except (UserError, NotJSONError, papermill.exceptions.PapermillException) as error:
        raise ReportError(f"{source.relative_to(ROOT)}: {error}") from None


def html(notebook, title: str) -> str:
    """The executed notebook as one HTML file, by notebooks/template/."""
    import nbformat
    from nbconvert import HTMLExporter

    exporter = HTMLExporter(template_name="template", extra_template_basedirs=[str(NOTEBOOK.parent)])
    shown = [cell for cell in notebook.cells if not HIDDEN & set(cell.metadata.get("tags", []))]
    page, _ = exporter.from_notebook_node(nbformat.from_dict({**notebook, "cells": said(shown)}), {"title": title})
    return page.replace(CONTENTS, contents(page), 1)


def said(cells: list) -> list:
    """The cells, without the sections and the questions whose code shows nothing.

    So a study that leaves an ablation out has no section about it.
    """
    return [
        cell
        for section in _parts(cells, "## ") if _shows(section)
        for part in _parts(section, "") if _shows(part) or part[0].source.startswith("#")
        for cell in part
    ]  # fmt: skip


def _parts(cells: list, opening: str) -> list[list]:
    """The cells in parts that each begin with a text, those whose text begins like this."""
    parts: list[list] = []
    for cell in cells:
        if not parts or (cell.cell_type == "markdown" and cell.source.startswith(opening)):
            parts.append([])
        parts[-1].append(cell)
    return parts


def _shows(part: list) -> bool:
    return len(part) == 1 or any(cell.get("outputs") for cell in part)


def contents(page: str) -> str:
    """The list of a page's sections, as links."""
    sections = re.findall(r'<h2 id="([^"]+)">(.*?)<a class="anchor-link"', page)
    return "".join(f'<li><a href="#{name}">{text}</a></li>' for name, text in sections)


def save_files(notebook, folder: Path) -> list[Path]:
    """Saves what the notebook displayed under a name, and removes what an earlier report had and this one has not."""
    saved = []
    for output in (output for cell in notebook.cells for output in cell.get("outputs", [])):
        name = output.get("metadata", {}).get("file")
        for kind, (place, ending) in FOLDERS.items():
            if name and kind in output.data:
                content = output.data[kind]
                path = folder / place / f"{name}.{ending}"
                path.parent.mkdir(exist_ok=True)
                files.write_bytes(path, base64.b64decode(content) if kind == "image/png" else content.encode())
                saved.append(path)
    for place, ending in FOLDERS.values():
        for stale in set((folder / place).glob(f"*.{ending}")) - set(saved):
            stale.unlink()
    return saved


def main(arguments: list[str]) -> int:
    """The command line: exit status 0 and the page's path, or 1 (2 for a bad study) and one line on stderr."""
    if len(arguments) != 1:
        print(f"usage: python -m lib.report STUDY, one of {', '.join(studies.names())}, or --front", file=sys.stderr)
        return 2
    try:
        page = build_front() if arguments[0] == "--front" else build(arguments[0])
    except ParameterError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    except (ReportError, OSError) as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print(page.relative_to(ROOT) if page.is_relative_to(ROOT) else page)
    return 0
