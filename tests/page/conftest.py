"""What the tests of pages share: one browser, axe-core, the published pages."""

import axe
import pytest
from browser import Browser, find


@pytest.fixture(scope="session")
def browser():
    """A headless Chromium; `make test-page` has found or installed it."""
    chromium = Browser(find() or pytest.exit("no Chromium here: `make test-page` says what to do"))
    yield chromium
    chromium.close()


@pytest.fixture(scope="session")
def axe_script():
    """The source of axe-core."""
    return axe.script()
