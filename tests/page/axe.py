"""axe-core (Deque, MPL 2.0): fetched once from npm to .cache/, checked to the byte, run in a page."""

import hashlib
import shutil
import subprocess
import tarfile

from browser import Browser

from lib.study import ROOT

VERSION = "4.14.1"
SHA512 = (
    "1477dafa598d8d065f273d6af302aa203c02e83131707b7fa648cd41bd3d6b73"
    "4f8c22a0dab86ee6a6f64b8afbe804b214d36db85a2826965edfb3a0b9d546b5"
)
FILE = f"axe-core-{VERSION}.tgz"


class AxeError(Exception):
    """could not get axe-core."""


def script() -> str:
    """The source of axe-core, of this version and no other."""
    path = ROOT / ".cache" / FILE
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        if not shutil.which("npm"):
            raise AxeError(f"npm is needed once, to fetch axe-core {VERSION}; or put {FILE} in .cache/")
        command = ["npm", "pack", f"axe-core@{VERSION}", "--silent", "--pack-destination", str(path.parent)]
        packed = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        if packed.returncode:
            raise AxeError(f"npm could not fetch axe-core {VERSION}: {packed.stderr.strip() or 'no reason given'}")
    if hashlib.sha512(path.read_bytes()).hexdigest() != SHA512:
        raise AxeError(f"{path} is not axe-core {VERSION}: remove it")
    with tarfile.open(path) as archive:
        return archive.extractfile("package/axe.min.js").read().decode()


def findings(browser: Browser, source: str) -> list[str]:
    """What shuts people out of the open page, a line each: how bad, the rule, how often and where first."""
    browser.run(f"{source}; undefined")
    found = browser.run("axe.run(document, {resultTypes: ['violations']}).then((result) => result.violations)")
    lines = []
    for rule in found:
        first = rule["nodes"][0]
        why = " ".join(first.get("failureSummary", "").split())[:250]
        lines.append(
            f"{rule['impact']}: {rule['id']} ({rule['help']}), {len(rule['nodes'])} times; {first['target']}: {why}"
        )
    return lines
