"""`python -m lib.report.cards`: writes a model card beside each of the published weights, from the run's record.

reports/published/<study>/runs/<run>/README.md
"""

import sys
from pathlib import Path

import numpy as np

from lib import files, records
from lib.params import DATASETS, Params, UserError
from lib.report import errors
from lib.report.published import EPOCHS, NETWORK

CARD = "README.md"
SELECTED = {
    "last": "the last epoch",
    "best_val": "the best validation accuracy",
    "best_test": "the best test accuracy (a leak: the accuracies below are too high)",
}


def card(record: dict, arrays: dict[str, np.ndarray]) -> str:
    """The model card of a run as Markdown; `arrays` are those of records.read_arrays."""
    p, name = Params.of(**record["params"]), f"{record['study']}/{record['run']}"
    probabilities, labels = errors.softmax(arrays["logits"]), arrays["labels"]
    classes = records.classes(record)
    return "\n".join([
        f"# {records.network_name(record)}: `{name}`",
        "",
        f"A network that classifies 32 × 32 pictures into {p.data}'s {_words(len(classes))} classes: "
        f"**{record['test_acc']:.2f} %** of the {len(labels):,} test images are right. `weights.safetensors` holds its "
        f"{record['parameters']:,} trained values and BatchNorm's statistics, as float32.",
        "",
        f"    make predict RUN={name} IMAGE=cat.jpg",
        "",
        "This card is written from `result.json` and `arrays.npz` by `python -m lib.report.cards`.",
        "",
        "## Data and recipe",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {text} |" for what, text in recipe(record, p)),
        "",
        "## Accuracy by class",
        "",
        "| class | right (%) | most often taken for |",
        "|---|---|---|",
        *by_class(errors.taken_for([(probabilities, labels)]), classes),
        "",
        "## Calibration",
        "",
        calibration(probabilities, labels),
        "",
        "## Limits",
        "",
        *(f"- {line}" for line in limits(record, p)),
        "",
        "## Licence",
        "",
        "The weights are under the repository's [MIT licence](../../../../../LICENSE). They were learned from "
        + (f"[{p.data}](https://www.cs.toronto.edu/~kriz/cifar.html) by Krizhevsky, Nair and Hinton, which names no "
           "licence and asks that *Learning Multiple Layers of Features from Tiny Images* (Krizhevsky, 2009) be cited."
           if p.dataset in DATASETS else f"the pictures of `{p.dataset}`, whose own licence this card does not know."),
        "",
    ])  # fmt: skip


def recipe(record: dict, p: Params) -> list[tuple[str, str]]:
    """What was trained on what and how: a name and a text a row."""
    overrides = {name: value for name, value in p.computed().items() if value != getattr(Params(), name)}
    held, environment = records.val_acc(record), record["environment"]
    arithmetic = environment.get("dtype") or p.dtype
    made = f"commit `{str(environment.get('commit'))[:12]}`, PyTorch {environment.get('torch')}"
    return [
        ("images", f"{record['train_images']:,} of {p.data}'s {'50,000 ' if p.dataset in DATASETS else ''}training "
                   f"images, {f'{p.val_size:,} others' if p.val_size else 'none'} for validation; data "
                   f"`{record['data_digest']}`"),
        ("training", f"{p.epochs} epochs in batches of {p.batch_size}, AdamW, {p.schedule} schedule with peak learning "
                     f"rate {p.lr:g}, weight decay {p.weight_decay:g}, seed {p.seed}, {arithmetic}"),
        ("other than the paper's", ", ".join(f"`{n}: {v}`" for n, v in overrides.items() if n != "seed") or "nothing"),
        ("weights of", f"epoch {record['selected_epoch']} of {len(record['history'])}, chosen by {SELECTED[p.select]}"
                       + (f"; {held:.2f} % in validation" if held >= 0 else "")),
        ("made with", f"{records.span(record['seconds'])} on {records.machine_name(record)}; {made}"),
    ]  # fmt: skip


def by_class(shares: np.ndarray, classes: tuple[str, ...]) -> list[str]:
    """A Markdown row a class: how often it is right, and what it is most often taken for; shares: errors.taken_for."""
    rows = []
    for number, name in enumerate(classes):
        wrong = np.where(np.arange(len(classes)) == number, 0, shares[number])
        taken = f"{classes[wrong.argmax()]} ({wrong.max():.1f} %)" if wrong.any() else "–"
        rows.append(f"| {name} | {shares[number, number]:.1f} | {taken} |")
    return rows


def calibration(probabilities: np.ndarray, labels: np.ndarray) -> str:
    """How far its probabilities can be believed, in a sentence or two."""
    confidence, accuracy, error = errors.calibration_of(probabilities, labels)
    return (
        f"Its likeliest class has a probability of {confidence:.1f} % on average and is right on {accuracy:.1f} % of "
        f"the test images: it is {'too sure' if confidence > accuracy else 'not sure enough'} by "
        f"{abs(confidence - accuracy):.1f} points. The expected calibration error over {errors.BINS} bins is "
        f"{error:.1f} points."
    )


def limits(record: dict, p: Params) -> list[str]:
    """What should not be expected of this network."""
    hard = min(record["per_class_acc"], key=record["per_class_acc"].get)
    said = [
        f"It knows {_words(len(record['per_class_acc']))} classes and no other: whatever a picture shows, it is given "
        "one of their names, often with a high probability.",
        f"It sees 32 × 32 pixels. Weakest class: {hard}, {record['per_class_acc'][hard]:.1f} % right. On pictures that "
        f"are not like {p.data}'s (other cameras, drawings, several things at once) it has not been measured.",
        f"One seed of its setting: another seed gives other weights and another accuracy, see [the page of "
        f"`{p.study}`](../../index.html) for their spread.",
    ]
    if (p.dim, p.depth, p.epochs, p.train_size) != (*NETWORK, EPOCHS, 0):
        said.append(
            f"Not the paper's experiment (ConvMixer-{NETWORK[0]}/{NETWORK[1]}, {EPOCHS} epochs, all images but those "
            "held out): its accuracy says nothing of what the architecture can reach."
        )
    return [*said, "It is for study. Nothing should be decided by it."]


def _words(n: int) -> str:
    return "ten" if n == 10 else str(n)


def write(reports: Path) -> list[Path]:
    """Writes the cards of all runs under `reports` that have weights, removes those of others; the paths written."""
    written = []
    for folder, record in records.with_weights(reports):
        written.append(folder / CARD)
        files.write_bytes(folder / CARD, card(record, records.read_arrays(record, folder)).encode())
    for stale in set(reports.glob(f"*/runs/*/{CARD}")) - set(written):
        stale.unlink()
    return written


def main() -> int:
    """Writes the published runs' cards; the exit status, 1 and a line on stderr for a record that cannot be used."""
    try:
        print(f"{len(write(records.PUBLISHED))} model cards")
    except (UserError, OSError) as error:
        print(f"cards: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
