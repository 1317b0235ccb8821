"""`python -m lib.verify [STUDY …]`: do the published weights, records, tables and the README say the same thing?

For every published run whose weights are in git, the network is built from its record, the weights are loaded and the
test images are classified again. Then every table and the README's results are computed again from the records.
"""

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from lib import explore, records, train
from lib.data import datasets
from lib.native import layers
from lib.params import Params, UserError
from lib.records import PUBLISHED
from lib.report import readme
from lib.study import ROOT, shown

# Test images that another processor, or another rounding of bfloat16, may classify otherwise: near ties.
ELSEWHERE = {"float32": 10, "bfloat16": 60, "float16": 60}


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if all agree, 1 if not."""
    parser = argparse.ArgumentParser(prog="python -m lib.verify", description=__doc__.splitlines()[0])
    parser.add_argument("studies", nargs="*", help="published studies; all, if none is named")
    options = parser.parse_args(arguments)
    names = options.studies or sorted(path.parent.name for path in PUBLISHED.glob("*/runs"))
    failed = 0
    try:
        for study in names:
            folders = sorted(path.parent for path in (PUBLISHED / study / "runs").glob(f"*/{records.RESULT}"))
            if not folders:
                raise UserError(f"{shown(PUBLISHED / study)}: no published run")
            failed += sum(differs(*weights(folder)) for folder in folders if (folder / records.WEIGHTS).exists())
            failed += differs(*tables(study))
        failed += differs(*results())
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    print("all agree" if not failed else f"{failed} do not agree")
    return 1 if failed else 0


def differs(agrees: bool, text: str) -> bool:
    """Prints what a check found; whether it found a difference."""
    print(f"{'ok  ' if agrees else 'NOT '} {text}", flush=True)
    return not agrees


images = functools.cache(datasets.read)


def weights(folder: Path) -> tuple[bool, str]:
    """Whether the weights in a run's folder classify the test images as its record has it."""
    record = records.read_result(folder / records.RESULT)
    kept = records.read_arrays(record, folder)
    dtype = record["params"]["dtype"]
    here = {"device": "cpu", "dtype": "float32" if dtype == "float16" else dtype}  # a processor has no float16
    p = Params.of(**{**record["params"], **here, "compile": False, "native": True})
    model, forward, native = train.build(p, train.pick_device("cpu"), len(records.classes(record)))
    model.load_state_dict(explore.load_weights(folder))
    data = images(p.dataset)
    if data.digest != record["data_digest"]:
        raise UserError(f"{shown(folder)}: trained on other images than {p.dataset} holds now")
    found = train.evaluate(p, model, forward, data.test_images, data.test_labels, records.normalisation(record))
    others = int((found["logits"].argmax(1) != kept["logits"].argmax(1)).sum())
    # The same source, compiler and kind of processor give the same bits.
    products = train.precision(p, train.pick_device("cpu"), native)["products"]
    made = {"native": native, "native_code": layers.code_name(), "bfloat16_products": products}
    alike = native is True and all(record["environment"].get(name) == value for name, value in made.items())
    allowed = 0 if alike else ELSEWHERE[dtype]
    return others <= allowed, (
        f"{record['study']}/{record['run']}: {found['acc']:.2f} % now, {record['test_acc']:.2f} % in the record; "
        f"{others} of {len(kept['labels'])} images classified otherwise, {allowed} allowed"
        + ("" if alike else " for another processor or other native code")
    )


def tables(study: str) -> tuple[bool, str]:
    """Whether a study's committed tables are what its records give now."""
    committed = {path.name: path.read_bytes() for path in (PUBLISHED / study / "tables").glob("*.csv")}
    with tempfile.TemporaryDirectory() as folder:
        reports = Path(folder) / "reports"
        shutil.copytree(
            PUBLISHED, reports, ignore=shutil.ignore_patterns(records.WEIGHTS, "tables", "*.png", "*.svg", "*.html")
        )
        command = [sys.executable, "-m", "lib.report", study]
        environment = {**os.environ, "CONVMIXER_REPORTS": str(reports)}
        made = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        again = {path.name: path.read_bytes() for path in (reports / study / "tables").glob("*.csv")}
    differ = sorted(name for name in committed.keys() | again.keys() if committed.get(name) != again.get(name))
    text = f"{study}: {len(committed)} tables computed again" + (
        f", these differ: {', '.join(differ)}" if differ else ""
    )
    return made.returncode == 0 and not differ, text


def results() -> tuple[bool, str]:
    """Whether the README's results are what the published records say."""
    records.REPORTS, before = PUBLISHED, records.REPORTS
    try:
        text = readme.README.read_text(encoding="utf-8")
        return readme.filled(text) == text, "the README's results computed again"
    finally:
        records.REPORTS = before


if __name__ == "__main__":
    sys.exit(main())
