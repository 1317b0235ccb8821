"""The report end to end: the notebook is executed in a copy of the repository, without torch and without a network."""

import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import nbformat
import pytest

import made
from lib.report import page, show
from lib.study import ROOT

CELLS = json.loads((ROOT / "notebooks" / "summary.ipynb").read_text(encoding="utf-8"))["cells"]
# What the project needs and a page does not: the group `report` of pyproject.toml is enough for it.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
NEEDLESS = set(PROJECT["project"]["dependencies"]) - set(PROJECT["dependency-groups"]["report"])
ABSENT = "raise ImportError('a page must build without it')"
ALONE = """
import socket
connect = socket.socket.connect
def near(self, address):
    if self.family != socket.AF_UNIX and not str(address[0]).startswith(("127.", "::1", "localhost")):
        raise OSError(f"a page must build without a network: {address}")
    return connect(self, address)
socket.socket.connect = near
"""


class Page(HTMLParser):
    """A page as its tags with attributes, and its style sheets."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.styles = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, text):
        if self.tags and self.tags[-1][0] == "style":
            self.styles.append(text)

    def all(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The source in a path with a space and an umlaut, two studies in it, and nothing that a page can do without."""
    home = tmp_path_factory.mktemp("Über uns") / "the copy"
    for name in ("lib", "notebooks", "params"):
        shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__", "*.ipynb_checkpoints"))
    for pin in NEEDLESS:
        (home / f"{re.match('[a-z_]+', pin)[0]}.py").write_text(ABSENT)
    (home / "sitecustomize.py").write_text(ALONE)
    with pytest.MonkeyPatch.context() as patch:
        made.place(patch, home)
        part = made.study("part", seeds=range(2), purpose="Text with <script>alert(1)</script> & more.")
        made.fill(part, skip={run.name for run in part.runs[:2]})
        made.stop(part, part.runs[0], "failure", reason="<b>out of memory</b>", epoch=1)
        made.study("none", seeds=range(2))
        made.fill(made.study("trials", settings=["kernel-3", *({"patch-4": {"lr": lr}} for lr in (0.1, 0.2))]))
        made.fill(made.study("pets", settings=[*made.SETTINGS, "cnn"], seeds=range(2), dataset="folder:my <i>pets"))
    return home


@pytest.fixture(scope="module")
def built(copy) -> subprocess.CompletedProcess:
    """What building the report of the study `part` showed."""
    return build(copy, "part", cwd=copy / "notebooks")


def build(copy: Path, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(copy), "CONVMIXER_DATA": "no data"}
    command = [sys.executable, "-m", "lib.report", *arguments]
    return subprocess.run(command, cwd=cwd or copy, env=environment, capture_output=True, text=True, timeout=200)


def files(folder: Path) -> dict[str, bytes]:
    kept = [p for p in folder.rglob("*") if p.is_file() and "runs" not in p.parts and p.name != page.EXECUTED]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


def assert_offline(page: Page) -> None:
    """No script, and nothing that a browser would fetch: the only addresses are links for a reader to follow."""
    assert not {tag for tag, _ in page.tags} & {"script", "iframe", "object", "embed", "base"}
    assert page.styles and not any("@import" in style or "url(" in style for style in page.styles)
    assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in page.all("img"))
    assert [link["href"] for link in page.all("link")] == ["data:,"]


def test_a_report_with_every_table_and_figure(copy, built):
    assert built.returncode == 0, built.stderr
    assert (built.stdout.strip(), built.stderr) == ("reports/part/index.html", "")
    saved = files(copy / "reports" / "part")
    text = saved["index.html"].decode()
    page = Page(text)
    assert_offline(page)
    assert len(text) < 1_500_000 and page.all("html") == [{"lang": "en"}]
    assert "viewport" in [meta.get("name") for meta in page.all("meta")]
    assert "<title>ConvMixer on CIFAR-10: part</title>" in text
    assert len(page.all("img")) == 14 and all(len(image["alt"]) > 40 for image in page.all("img"))
    for number in (*(f"Table {n}" for n in ("I", "II", "III", "IV", "V")), *(f"Fig. {n}" for n in range(1, 6))):
        assert f"<b>{number}.</b>" in text
    links = {link["href"] for link in page.all("a") if link["href"].startswith(("figures/", "tables/"))}
    assert links == set(saved) - {"index.html"} and len([link for link in links if link.startswith("figures/")]) == 28


def test_gaps_are_marked_and_text_is_escaped(copy, built):
    text = (copy / "reports" / "part" / "index.html").read_text(encoding="utf-8")
    assert "16 of 18 runs" in text and "1 of 2 seeds (1 failed)" in text and "1 of 2 seeds (1 missing)" in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt; &amp; more." in text and "&lt;b&gt;out of memory&lt;/b&gt;" in text
    assert "Made-Up Processor &lt;1&gt;" in text


def test_every_caption_says_what_runs_it_is_of(copy, built):
    """Those without are about a study's file, all studies' claims and the levels of the gap, which say it each."""
    text = (copy / "reports" / "part" / "index.html").read_text(encoding="utf-8")
    captions = dict(re.findall(r"<figcaption><b>([^<]+)\.</b>(.*?)</figcaption>", text, re.DOTALL))
    without = {name for name, caption in captions.items() if not re.search(r" epochs of 45,000 images, n=\d", caption)}
    assert without == {"Claims", "Parameters", "Levels of the gap"}
    assert ", 12 epochs of" in captions["Table II"] and ", 10 epochs of" in captions["Fig. 2"]
    timed = {name for name, caption in captions.items() if "Made-Up Processor" in caption}
    assert timed == {"Accuracy against cost", "Table V", "Settings", "Runs"}


def test_without_the_images_the_mistakes_say_what_is_missing(copy, built):
    text = (copy / "reports" / "part" / "index.html").read_text(encoding="utf-8")
    assert "Mistakes cannot be drawn yet. It needs a finished run, the test images" in text


def test_the_same_records_give_the_same_bytes_and_stale_files_go(copy, built):
    folder = copy / "reports" / "part"
    first = files(folder)
    (folder / "figures" / "fig-9-gone.png").write_bytes(b"of an earlier report")
    assert build(copy, "part").returncode == 0
    assert files(folder) == first


def test_without_runs_the_page_names_the_command(copy):
    ran = build(copy, "none")
    assert ran.returncode == 0, ran.stderr
    text = (copy / "reports" / "none" / "index.html").read_text(encoding="utf-8")
    assert_offline(Page(text))
    assert "<code>make runs STUDY=none</code>" in text and "Fig. 3 cannot be drawn yet" in text
    assert "code: fig-3-baseline</summary>" in text
    # Tables of the paper's stay, with its figures and what is missing; what would show nothing at all goes.
    shown = re.findall(r"<figcaption><b>([^<]+)\.</b>", text)
    assert "Table II" in shown and not {"Kernel steps", "Selection", "Settings", "Classes"} & set(shown)


def test_a_study_without_an_ablation_has_no_section_about_it(copy):
    assert build(copy, "trials").returncode == 0
    text = (copy / "reports" / "trials" / "index.html").read_text(encoding="utf-8")
    sections = re.findall(r'<h2 id="([^"]+)">', text)
    assert {"Kernel-size", "Other-settings", "The-paper's-claims", "All-curves"} <= set(sections)
    assert not {"Patch-size", "The-learning-rate", "The-baseline"} & set(sections)
    assert "patch-4 lr=0.1" in text and "<b>Table III.</b>" not in text and "Fig. 5 cannot" not in text


def test_a_page_of_other_data_says_so_and_shows_nothing_that_others_published(copy):
    ran = build(copy, "pets")
    assert ran.returncode == 0, ran.stderr
    saved = files(copy / "reports" / "pets")
    text = saved["index.html"].decode()
    assert_offline(Page(text))
    assert "<title>ConvMixer on my &lt;i&gt;pets: pets</title>" in text
    assert "ConvMixer on my &lt;i&gt;pets: kernel and patch" in text and "<i>" not in text
    assert "3 classes (cat, dog, owl); 45,000 images to train with, 5,000 for validation, 10,000 for the test" in text
    # Neither a section nor a file about it, and none of its figures.
    assert not [name for name in saved if any(word in name for word in ("claims", "gap", "table-iv"))]
    assert "table-iii-patch" in text and "other-settings" in text
    said = re.sub(r"<details.*?</details>|<style.*?</style>", "", text, flags=re.DOTALL)
    for figure in ("88.94", "95.88", "80.96", "92.61", "85.65", "CIFAR", "the paper (%)", "the original (%)"):
        assert figure not in said
    assert not re.search(r"\bnan\b", re.sub(r"<[^>]+>", " ", said))


def test_a_failing_notebook_is_one_line_and_keeps_the_old_page(copy):
    broken = copy.parent / "broken"
    shutil.copytree(copy, broken)
    page = broken / "reports" / "none" / "index.html"
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("the old page")
    with (broken / "lib" / "report" / "sentences.py").open("a") as file:
        file.write("\n\ndef short(study, runs):\n    raise ValueError('torn')\n")
    ran = build(broken, "none")
    assert ran.returncode == 1 and ran.stdout == ""
    assert re.fullmatch(r"report: cell \d+ of notebooks/summary.ipynb: ValueError: torn \(.*\)\n", ran.stderr)
    assert page.read_text() == "the old page"


def test_a_warning_in_a_cell_spoils_no_page():
    """A library's warning is an output of text without metadata; the reader of the page is told nothing of it."""
    figure = nbformat.v4.new_output("display_data", {"text/plain": "drawn"}, metadata={"file": "fig-1"})
    warning = nbformat.v4.new_output("stream", name="stderr", text="RuntimeWarning: Mean of empty slice")
    cell = nbformat.v4.new_code_cell("draw()", outputs=[warning, figure])
    text = page.html(nbformat.v4.new_notebook(cells=[cell]), "a title")
    assert "code: fig-1</summary>" in text and "drawn" in text and "Mean of empty slice" not in text


def test_a_bad_study_is_one_line(copy, capsys):
    assert page.main(["no-such"]) == 2
    assert re.fullmatch(r"report: study=no-such: no params/studies/no-such.yaml, .*\n", capsys.readouterr().err)
    assert page.main([]) == 2
    assert capsys.readouterr().err.startswith("usage: python -m lib.report STUDY")


def test_the_committed_notebook_is_clean_and_short():
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    assert statistics.median(len(cell["source"]) for cell in code) <= 6
    assert not any("class " in line or "torch" in line for cell in code for line in cell["source"])
    (parameters,) = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    assert "".join(parameters["source"]).startswith('study: str = "quick"  # ')


def test_a_figure_comes_after_its_question():
    """What the paper says of it may stand between them."""
    cells = [cell for cell in CELLS if not cell["id"].endswith("-paper")]
    for before, cell in itertools.pairwise(cells):
        if "show.figure(" in "".join(cell["source"]):
            assert before["cell_type"] == "markdown" and "?" in "".join(before["source"])


def test_the_front_page_lists_the_studies_that_have_runs(copy, built):
    done = build(copy, "--front")
    assert (done.stdout.strip(), done.returncode) == ("reports/index.html", 0), done.stderr
    text = (copy / "reports" / "index.html").read_text(encoding="utf-8")
    assert '<a href="part/index.html">part</a>' in text and "16 of 18" in text and "The paper" in text
    other = text[text.index('id="other-images"') :]
    assert 'href="pets/index.html"' in other[: other.index("</figure>")] and text.count("pets/index.html") == 1
    assert_offline(Page(text))


def test_a_link_is_one_to_a_page_and_nothing_that_runs():
    """Names of classes and folders are somebody's text, too."""
    linked = show._prose("[a](https://x.org/b) [c](../c/index.html)")
    assert linked == '<a href="https://x.org/b">a</a> <a href="../c/index.html">c</a>'
    assert "<a" not in show._prose("[a](javascript:alert%281%29) [b](data:text/html,c)")
