"""`make test-page`: the published pages in a headless browser. Finds or installs what that needs, then runs pytest.

Needed are Chromium (or $CHROME) and axe-core, which looks for what shuts people out; npm fetches it to .cache/.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import axe
import browser
import pytest

HERE = Path(__file__).resolve().parent


def main(arguments: list[str]) -> int:
    """pytest's exit status, or 2 and a line that says what is missing."""
    if not browser.find():
        install = ["apt-get", "install", "--yes", "--no-install-recommends", "chromium"]
        if os.geteuid() or not shutil.which("apt-get"):
            print("test-page: no Chromium here; install one, or give its path in CHROME", file=sys.stderr)
            return 2
        print(f"no Chromium here: {' '.join(install)}", flush=True)
        if subprocess.run(install, stdout=subprocess.DEVNULL).returncode or not browser.find():
            print("test-page: it could not be installed (`apt-get update` first?)", file=sys.stderr)
            return 2
    try:
        axe.script()
    except axe.AxeError as error:
        print(f"test-page: {error}", file=sys.stderr)
        return 2
    return pytest.main([str(HERE), "-p", "no:cacheprovider", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
