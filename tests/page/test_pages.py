"""Every published page, on a desk and on a phone, by day and by night: nothing fetched, nobody shut out."""

import axe
import pytest

from lib.records import PUBLISHED

PAGES = sorted(PUBLISHED.rglob("*.html"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(PUBLISHED)))
def test_a_page_is_quiet_stays_at_home_fits_and_shuts_nobody_out(browser, axe_script, path, width, dark):
    browser.open(path, width, dark)
    assert browser.run("document.documentElement.scrollWidth") <= width
    findings = axe.findings(browser, axe_script)
    assert not findings, "\n".join(findings)
    assert not browser.problems
    assert [url for url in browser.requests if not url.startswith(("data:", "blob:"))] == [path.resolve().as_uri()]


def test_a_page_that_does_all_that_is_found_out(browser, axe_script, tmp_path):
    path = tmp_path / "bad.html"
    path.write_text('<title>Bad</title><img src="https://example.invalid/a.png"><p style="width: 999px">&nbsp;</p>'
                    "<script>console.error('torn'); undefined_here()</script>")  # fmt: skip
    browser.open(path, 390)
    assert browser.run("document.documentElement.scrollWidth") > 390
    assert {"image-alt", "html-has-lang"} <= {line.split()[1] for line in axe.findings(browser, axe_script)}
    assert "torn" in browser.problems and any("undefined_here" in problem for problem in browser.problems)
    assert "https://example.invalid/a.png" in browser.requests
