"""`python -m lib.predict IMAGE …`: what a trained network says that pictures show. No training, no data set.

The network is the published one with the best validation accuracy, or the one that is asked for.
"""

import argparse
import functools
import sys
from pathlib import Path

import pandas as pd
from torch import nn

from lib import explore, records
from lib.data.picture import PictureError, picture
from lib.params import Params, UserError
from lib.records import RecordError
from lib.study import shown

SHOWN = 3  # classes of each picture
BAR = 30  # characters of a bar at 100 %


def predict(image: str | Path, run: str = "") -> pd.Series:
    """The probability (%) of each class for a picture file, the likeliest first.

    run: `study/run`, of this machine or, where it has not trained that, published, or a run's folder; empty for the
    published one that is best on CIFAR-10 by validation accuracy.
    PictureError says what is wrong with the picture, RecordError what with the run.
    """
    record, model = network(run)
    return explore.top(record, model, picture(image))


@functools.cache
def network(run: str = "") -> tuple[dict, nn.Module]:
    """A run's record and its network in evaluation mode; `run` as predict has it."""
    return explore.trained_in(chosen(run))


def chosen(run: str = "") -> Path:
    """The folder of a run; RecordError says which there are."""
    if run:
        study, _, name = run.partition("/")
        if folder := explore.folder_of(study, name):
            return folder
        if explore.is_whole(Path(run)):
            return Path(run)
    published = records.with_weights(records.PUBLISHED)
    if run or not published:
        raise RecordError(
            f"RUN={run}: no run with weights, neither of this machine nor published, and no folder of one; published "
            f"are: {', '.join(explore.published()) or 'none'}"
        )
    # Accuracies on different data cannot be compared, so the best is one of CIFAR-10. Without a validation split,
    # accuracy would have to come from the test set: such a run is never the best.
    published = [found for found in published if Params.of(**found[1]["params"]).dataset == "cifar10"] or published
    return max(published, key=lambda found: (records.val_acc(found[1]) >= 0, records.val_acc(found[1])))[0]


def described(record: dict) -> str:
    """Which network it is and how good, in a line or two."""
    held_out = records.val_acc(record)
    return (
        f"{record['study']}/{record['run']}: {records.network_name(record)}\n"
        f"right on {record['test_acc']:.2f} % of the test images of {Params.of(**record['params']).data}"
        + (f", {held_out:.2f} % in validation" if held_out >= 0 else "")
    )


def main(arguments: list[str] | None = None) -> int:
    """The command line: exit status 0, or 1 and a line on stderr for each picture that could not be read."""
    parser = argparse.ArgumentParser(prog="python -m lib.predict", description=__doc__.splitlines()[0])
    parser.add_argument("image", nargs="+", help="a picture, of any size and format that Pillow reads")
    parser.add_argument("--run", default="", metavar="STUDY/RUN", help="which published network; the best if not given")
    options = parser.parse_args(arguments)
    if not any(options.image):
        parser.error("give a picture: make predict IMAGE=cat.jpg")
    failed = 0
    try:
        where = shown(chosen(options.run))
        print(f"{described(network(options.run)[0])}; {where}")
        for path in options.image:
            try:
                likeliest = predict(path, options.run)[:SHOWN]
            except PictureError as error:
                print(error, file=sys.stderr, flush=True)
                failed += 1
                continue
            print(f"\n{path}")
            width = max(10, *map(len, likeliest.index))
            for name, share in likeliest.items():
                print(f"  {name:<{width}} {share:5.1f} %  {'█' * round(share * BAR / 100)}".rstrip(), flush=True)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1
    return 1 if failed else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a file's name may hold anything
    sys.exit(main())
