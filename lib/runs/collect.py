"""Takes finished runs from another machine or clone into this one's reports: `python -m lib.runs.collect FOLDER`.

FOLDER is the other one's reports/ (or a study's folder in it). A run is taken if its record is one that this code
could have written: schema, parameters and fingerprint, the data's digest, and an accuracy that follows from its
logits. A run that is here already is never overwritten.
"""

import sys
from pathlib import Path

from lib import files, records
from lib.data.download import DIGEST
from lib.params import Params, UserError, run_name
from lib.records import ARRAYS, RESULT, WEIGHTS, RecordError
from lib.runs.lock import own
from lib.study import base_params


def main(arguments: list[str]) -> int:
    """The exit status: 0 if every finished run of the folder is here now, 1 if not, 2 for a mistake in the call."""
    if len(arguments) != 1 or not arguments[0]:
        print("usage: make import FROM=folder, such as another clone's reports/", file=sys.stderr)
        return 2
    source = Path(arguments[0])
    if not source.is_dir():
        print(f"{source}: no such folder", file=sys.stderr)
        return 2
    found = sorted(path.parent for where in ("*/runs/*", "runs/*") for path in source.glob(f"{where}/{RESULT}"))
    if not found:
        print(f"{source}: no finished run in it", file=sys.stderr)
        return 1
    refused = 0
    for folder in found:
        try:
            print(collect(folder))
        except (UserError, OSError) as error:
            print(f"not taken: {error}", file=sys.stderr)
            refused += 1
    print(f"{len(found) - refused} of {len(found)} finished runs of {source} are in {records.REPORTS}")
    return 1 if refused else 0


def collect(source: Path) -> str:
    """Copies the finished run in `source`; what was done in one line. RecordError says why it is not taken."""
    record = checked(source)
    target = records.folder_of(record["study"], record["run"])
    name = f"{record['study']}/{record['run']}"
    # Of published runs git keeps the weights of seed 0 alone.
    needless = (WEIGHTS,) if records.REPORTS == records.PUBLISHED and record["params"]["seed"] else ()
    with own(target):
        if (target / RESULT).exists():
            there = records.read_result(target / RESULT)
            if there == record:
                return f"{name}: here already"
            raise RecordError(
                f"{name}: another record of it is here, with {there['test_acc']:.2f} % on the test set where {source} "
                f"has {record['test_acc']:.2f} %; to take that one, move {target} away"
            )
        for file in (WEIGHTS, ARRAYS, RESULT):  # the record last: with it the run counts as finished
            if (source / file).exists() and file not in needless:
                files.write_bytes(target / file, (source / file).read_bytes())
    return f"{name}: taken, {record['test_acc']:.2f} % on the test set"


def checked(folder: Path) -> dict:
    """The record in a run's folder; RecordError or ParameterError if this code could not have written it."""
    record = records.read_result(folder / RESULT)
    params = Params.of(**record["params"])
    name = run_name(params, base_params(params.study))
    if changes := params.unlike(record):
        raise RecordError(f"{folder}: its fingerprint is not that of its parameters ({changes})")
    if (record["study"], record["run"]) != (params.study, name):
        raise RecordError(
            f"{folder}: says {record['study']}/{record['run']}, its parameters are {params.study}/{name} here; "
            f"is params/studies/{params.study}.yaml the same on both machines?"
        )
    # What other images were elsewhere cannot be known here; records.load refuses what differs from run to run.
    if params.dataset == "cifar10" and record["data_digest"] != DIGEST:
        raise RecordError(f"{folder}: trained on other data than CIFAR-10 as this project has it")
    records.read_arrays(record, folder)
    return record


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
