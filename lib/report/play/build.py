"""`python -m lib.report.play.build`: published networks in the reader's browser, as one offline page.

reports/published/play.html, from page.html, page.css and the scripts beside this file, the committed records and
weights and ten test images. convmixer.js computes what lib/model.py does, picture.js what lib/data/picture.py does. The
same records, weights and images give the same bytes.
"""

import base64
import json
import re
import sys
from pathlib import Path

import numpy as np

from lib import files, records
from lib.params import Params, UserError
from lib.records import CLASSES, MEAN, STD
from lib.report.front import MAIN
from lib.study import shown

HERE = Path(__file__).parent
PAGE = "play.html"
SCRIPTS = ("convmixer.js", "picture.js", "page.js")
LIMIT = 3_000_000  # bytes of the page
NORM = ("weight", "bias", "running_mean", "running_var")  # of a BatchNorm


def main() -> int:
    """Writes the page; the exit status, 1 and a line on stderr if something that it needs is not there."""
    path = records.PUBLISHED / PAGE
    try:
        page = build(records.PUBLISHED, test_images())
        content = page.encode()
        files.write_bytes(path, content)
    except (UserError, OSError) as error:
        print(f"play: {error}", file=sys.stderr)
        return 1
    print(f"{shown(path)}: {page.count('data-run')} networks, {len(content) / 1e6:.2f} MB")
    return 0


def build(reports: Path, images: np.ndarray, limit: int = LIMIT) -> str:
    """The page with as many of the networks under `reports` as fit into `limit` bytes, in the order of `candidates`.

    images: (10, 32, 32, 3), uint8, one of each class. UserError if there is no network or none fits.
    """
    parts = {
        "style": _text("page.css"),
        "script": "\n".join(_text(name) for name in SCRIPTS),
        "images": base64.b64encode(images.tobytes()).decode(),
        "chooser": "", "networks": "",
    }  # fmt: skip
    packed = []
    room = limit - len(_filled(parts).encode()) - 2_000
    for folder, record in candidates(records.with_weights(reports)):
        network = network_of(folder, record)
        size = len(json.dumps(network)) + 300  # with its place in the chooser
        if size <= room:
            packed.append(network)
            room -= size
    if not packed:
        raise UserError(f"no published ConvMixer whose weights fit into a page of {limit:,} bytes")
    return _filled(
        {**parts, "networks": json.dumps(packed).replace("<", "\\u003c"), "chooser": chooser(packed, reports)}
    )


def candidates(found: list[tuple[Path, dict]]) -> list[tuple[Path, dict]]:
    """Of the runs with weights the best in validation of each study, kernel and patch, in the order of the page.

    CIFAR-10's alone: the page has its ten classes and ten of its images.
    """
    best: dict[tuple, tuple[Path, dict]] = {}
    for folder, record in found:
        p = Params.of(**record["params"])
        if p.arch != "convmixer" or p.dataset != "cifar10":
            continue
        place = MAIN.index(p.study) if p.study in MAIN else len(MAIN)
        key = (place, p.study, p.patch, p.kernel)
        if key not in best or records.val_acc(record) > records.val_acc(best[key][1]):
            best[key] = folder, record
    return [best[key] for key in sorted(best)]


def network_of(folder: Path, record: dict) -> dict:
    """What the page needs of a network; its weights are float16 in the order of `names`, as base64."""
    p = Params.of(**record["params"])
    weights = half(folder)
    flat = np.concatenate([weights[name].ravel() for name in names(p.depth)])
    return {
        "study": p.study, "run": record["run"], "name": records.network_name(record),
        "dim": p.dim, "depth": p.depth, "kernel": p.kernel, "patch": p.patch,
        "mean": MEAN, "std": STD[p.std],
        "test": record["test_acc"], "validation": round(records.val_acc(record), 2) if p.val_size else 0,
        "weights": base64.b64encode(flat.astype("<f2").tobytes()).decode(),
    }  # fmt: skip


def half(folder: Path) -> dict[str, np.ndarray]:
    """A run's state dict in float16; UserError where that cannot hold a value."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file  # this half of the package needs no torch

    try:
        weights = load_file(folder / records.WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise records.RecordError(f"{folder / records.WEIGHTS}: not readable ({error})") from None
    with np.errstate(over="ignore"):
        rounded = {name: value.astype(np.float16) for name, value in weights.items() if value.dtype.kind == "f"}
    if not all(np.isfinite(value).all() for value in rounded.values()):
        raise records.RecordError(f"{folder / records.WEIGHTS}: a value is too large for float16")
    return rounded


def names(depth: int) -> list[str]:
    """The state dict's names in the order in which convmixer.js reads them."""
    layers = [("stem.0", "stem.2")]
    for i in range(depth):
        layers += [(f"blocks.{i}.0.fn.0", f"blocks.{i}.0.fn.2"), (f"blocks.{i}.1", f"blocks.{i}.3")]
    found = []
    for conv, norm in layers:
        found += [f"{conv}.weight", f"{conv}.bias", *(f"{norm}.{name}" for name in NORM)]
    return [*found, "head.weight", "head.bias"]


def chooser(networks: list[dict], reports: Path) -> str:
    """The networks as radio buttons in HTML, a group for each study, which links to its page where there is one."""
    groups = []
    for study in dict.fromkeys(network["study"] for network in networks):
        own = [(i, network) for i, network in enumerate(networks) if network["study"] == study]
        buttons = "".join(
            f'<label><input type="radio" name="network" value="{i}" data-run="{network["run"]}">'
            f"<span>k={network['kernel']}, p={network['patch']} <small>{network['test']:.1f} %</small></span></label>"
            for i, network in own
        )
        page = f'<a href="{study}/index.html">{study}</a>' if (reports / study / "index.html").exists() else study
        title = f"{' and '.join(dict.fromkeys(network['name'].split(',')[0] for _, network in own))} of {page}"
        groups.append(f'<fieldset class="chips"><legend>{title}</legend>{buttons}</fieldset>')
    return "\n".join(groups)


def test_images() -> np.ndarray:
    """The first test image of each class, (10, 32, 32, 3), uint8; UserError if CIFAR-10 is not on the disk."""
    from lib.data import download  # the one thing here that the room below has

    if (arrays := download.kept()) is None:
        raise UserError("CIFAR-10 is not here, `make data` fetches it")
    images, labels = arrays["test_images"], arrays["test_labels"]
    return images[[int(np.argmax(labels == number)) for number in range(len(CLASSES))]]


def _text(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _filled(parts: dict[str, str]) -> str:
    """page.html with {{name}} replaced, in one pass: what is put in is not looked at again."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], _text("page.html"))


if __name__ == "__main__":
    sys.exit(main())
