"""Where networks err, from the test logits that every run leaves: classes, confusion, calibration and agreement."""

import contextlib
import itertools

import numpy as np
import pandas as pd
import scipy.special
import seaborn as sns
from matplotlib.figure import Figure

from lib import records
from lib.records import CLASSES
from lib.report import cells, stats
from lib.report.columns import SETTING, N, count, interval, number, shows, words
from lib.report.style import GREY, WIDTH, described, styled

SHOWN = 20  # classes that a table or a figure has room for
BINS = 15  # of confidence, for the expected calibration error


def outputs(runs: pd.DataFrame) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Probabilities (N, classes) and labels (N,) of test images, of the finished seeds of each of cells.configurations.

    The learning-rate sweep is none: most of its rates are no good.
    """
    found: dict[str, list] = {}
    for label, rows in cells.configurations(runs[runs["status"] == "done"]).items():
        for record in rows["record"]:
            with contextlib.suppress(records.RecordError):  # the table of all runs says so
                arrays = records.read_arrays(record)
                found.setdefault(label, []).append((softmax(arrays["logits"]), arrays["labels"]))
    return found


def names(runs: pd.DataFrame) -> tuple[str, ...]:
    """The classes of the runs, by label; those of CIFAR-10 where none is finished."""
    return records.classes(next(iter(runs["record"].dropna()), {}))


def best(found: dict[str, list]) -> str:
    """The setting of `outputs` that is right most often, by its mean over seeds."""
    accuracy = {name: np.mean([records.accuracy(*seed) for seed in seeds]) for name, seeds in found.items()}
    return max(accuracy, key=accuracy.__getitem__)


def best_runs(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs of the setting that is right most often; all where none is finished."""
    found = outputs(runs)
    return cells.configurations(runs[runs["status"] == "done"])[best(found)] if found else runs


def best_and_its_mistake(runs: pd.DataFrame) -> list[str]:
    """Which setting is right most often, and what it most often takes for what."""
    found = outputs(runs)
    if not found:
        return []
    name = best(found)
    accuracy = stats.mean([records.accuracy(*seed) for seed in found[name]])
    true, taken, share = _most_frequent(taken_for(found[name]), names(runs))
    lead = f"Of {len(found)} settings `{name}` has the best accuracy: " if len(found) > 1 else f"`{name}` reaches "
    mistake = f"it takes {_a(true)} for {_a(taken)}: {share:.0f} % of that class"
    return [f"{lead}{accuracy.mean:.2f}{interval(accuracy.half)} % (n={accuracy.n}). Most often {mistake}."]


def taken_for(seeds: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """What true classes (rows) are taken for (columns), in per cent of the row, over networks: (classes, classes)."""
    classes = seeds[0][0].shape[1]
    counts = np.zeros((classes, classes))
    for probabilities, labels in seeds:
        np.add.at(counts, (labels, probabilities.argmax(1)), 1)
    return 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)


def _most_frequent(shares: np.ndarray, classes: tuple[str, ...]) -> tuple[str, str, float]:
    """The most frequent mistake in `taken_for`: the class, what it is taken for, and how often (% of the class)."""
    off = shares * (1 - np.eye(len(shares)))
    true, taken = np.unravel_index(off.argmax(), off.shape)
    return classes[true], classes[taken], float(off.max())


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (N, classes) from logits of any float type."""
    return scipy.special.softmax(logits.astype(np.float64), axis=1)


@shows(
    words("class", "class", "short"), number("mean", "all settings (%)"),
    words("best", "best setting", "short", optional=True), number("best_accuracy", "best (%)", optional=True),
    words("worst", "worst setting", "short", optional=True), number("worst_accuracy", "worst (%)", optional=True),
)  # fmt: skip
def by_class(runs: pd.DataFrame) -> pd.DataFrame:
    """Test accuracy of each class, means over seeds: of all settings and, of several, the best and the worst at it.

    Of more than SHOWN classes the hardest half of SHOWN and the easiest, by the mean.
    """
    settings = cells.configurations(runs[runs["status"] == "done"])
    by_setting = {name: pd.DataFrame([r["per_class_acc"] for r in rows["record"]]) for name, rows in settings.items()}
    accuracy = pd.DataFrame({name: table.mean() for name, table in by_setting.items()})
    if accuracy.empty:
        return pd.DataFrame()
    table, several = pd.DataFrame({"mean": accuracy.mean(axis=1)}), len(settings) > 1
    for which, choose in (("best", "max"), ("worst", "min")):
        table[which] = getattr(accuracy, f"idx{choose}")(axis=1) if several else ""
        table[f"{which}_accuracy"] = getattr(accuracy, choose)(axis=1) if several else np.nan
    if len(table) > SHOWN:
        table = table.sort_values("mean", kind="stable")
        table = pd.concat([table[: SHOWN // 2], table[-SHOWN // 2 :]])
    return table.rename_axis("class").reset_index()


def left_out(runs: pd.DataFrame) -> list[str]:
    """What the table and the figure of the classes do not show, where there are too many to show all."""
    if (classes := len(names(runs))) <= SHOWN:
        return []
    return [
        f"Of {classes} classes the table has the {SHOWN // 2} hardest and the {SHOWN // 2} easiest, the figure those "
        "in the most frequent mistakes; each run's `result.json` has the accuracy of all."
    ]


@shows(
    SETTING, number("confidence", "mean confidence (%)"), number("accuracy", "accuracy (%)"),
    number("error", "expected calibration error (points)"), N,
)  # fmt: skip
def calibration(runs: pd.DataFrame) -> pd.DataFrame:
    """How well confidence agrees with accuracy, by setting: see calibration_of; means over seeds."""
    rows = []
    for setting, seeds in outputs(runs).items():
        found = [calibration_of(p, labels) for p, labels in seeds]
        means = [float(np.mean(values)) for values in zip(*found, strict=True)]
        named = dict(zip(("confidence", "accuracy", "error"), means, strict=True))
        rows.append({"setting": setting, **named, "n": len(found)})
    return pd.DataFrame(rows)


def calibration_of(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Mean confidence (%), accuracy (%) and expected calibration error (points) of one network.

    The error is the mean gap between the two over BINS equal bins of confidence (Guo et al., arXiv 1706.04599).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(right[place == b].sum() - confidence[place == b].sum()) for b in range(BINS)]
    return 100 * float(confidence.mean()), records.accuracy(probabilities, labels), 100 * float(sum(gaps)) / len(labels)


def confusion(runs: pd.DataFrame) -> Figure | None:
    """What true classes (rows) are taken for (columns), in per cent of the row, over the seeds of the best setting.

    Of more than SHOWN classes those that are in the most frequent mistakes, about half of SHOWN.
    """
    found = outputs(runs)
    return confusion_of(found[best(found)], best(found), names(runs)) if found else None


@styled
def confusion_of(seeds: list[tuple[np.ndarray, np.ndarray]], name: str, classes: tuple[str, ...] = CLASSES) -> Figure:
    """What true classes (rows) are taken for (columns), in per cent of the row, by the networks called `name`.

    Each is given by its probabilities (N, classes) and labels (N,); one is enough. Of more than SHOWN classes those of
    the most frequent mistakes are shown.
    """
    shares = taken_for(seeds)
    true, taken, share = _most_frequent(shares, classes)
    most = f"most often {true} is taken for {taken} ({share:.0f} %)"
    shown = np.array(classes)
    if len(classes) > SHOWN:
        off = shares * (1 - np.eye(len(shares)))
        worst = np.argsort(-off, axis=None, kind="stable")[: SHOWN // 4]  # pairs
        kept = sorted(set(np.concatenate(np.unravel_index(worst, off.shape))))
        most += f"; shown are {len(kept)} of {len(classes)} classes"
        shown, shares = shown[kept], shares[np.ix_(kept, kept)]
    figure = Figure((WIDTH, 4.6), layout="constrained")
    axes = figure.subplots()
    small = 8 if len(shown) <= 12 else 6
    look = {"annot": True, "fmt": ".0f", "annot_kws": {"fontsize": small}, "cmap": "Blues", "cbar": False}
    short = [word if len(word) <= 20 else f"{word[:19]}…" for word in shown]
    sns.heatmap(shares, ax=axes, vmin=0, vmax=100, square=True, **look)
    axes.set(xlabel="taken for", ylabel="true class", xticklabels=short, yticklabels=short)
    axes.tick_params(axis="x", rotation=60, labelsize=small + 1)
    axes.tick_params(axis="y", rotation=0, labelsize=small + 1)
    return described(figure, f"Confusion of {name} (n={len(seeds)}): {most}.")


def mistakes(runs: pd.DataFrame, data) -> Figure | None:
    """The test images that the best setting gets wrong with the highest probability, the mean over its seeds.

    data: test_images (N, 32, 32, 3), uint8, and test_labels, as a lib.data.datasets.Dataset; None where it is not here.
    """
    found = outputs(runs)
    if not found or data is None:
        return None
    seeds = found[best(found)]
    if any(not np.array_equal(labels, data.test_labels) for _, labels in seeds):
        return None  # logits of other images than these
    probabilities = np.mean([p for p, _ in seeds], axis=0)
    return mistakes_of(data.test_images, data.test_labels, probabilities, names(runs))


@styled
def mistakes_of(
    images: np.ndarray,
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: tuple[str, ...] = CLASSES,
    count: int = 12,
) -> Figure | None:
    """The `count` images (N, 32, 32, 3) that are wrong with the highest probability, with what each is and is taken
    for; labels (N,), probabilities (N, classes). None where nothing is wrong.
    """
    said = probabilities.argmax(1)
    wrong = np.flatnonzero(said != labels)
    worst = wrong[np.argsort(-probabilities[wrong].max(1), kind="stable")][:count]
    if not len(worst):
        return None
    rows = -(-len(worst) // 4)
    figure = Figure((WIDTH, 1.62 * rows), layout="constrained")
    grid = figure.subplots(rows, 4, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    told = []
    for axes, i in zip(grid.flat, worst, strict=False):
        true, taken, probability = classes[labels[i]], classes[said[i]], f"{100 * probabilities[i].max():.1f} %"
        axes.imshow(images[i], interpolation="nearest")
        axes.set_title(f"{true}\n→ {taken}\n{probability}", fontsize=9)
        told.append(f"{_a(true)} for {_a(taken)} ({probability})")
    return described(figure, f"Mistakes with the highest probability: {'; '.join(told)}.")


def _a(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


@styled
def agreement(runs: pd.DataFrame) -> Figure | None:
    """How often two networks say the same class: between seeds of one setting, and between settings."""
    found = {name: [p.argmax(1) for p, _ in seeds] for name, seeds in outputs(runs).items()}
    if len(found) < 2:
        return None
    names = list(found)
    shares = np.full((len(names), len(names)), np.nan)
    for (i, one), (j, other) in itertools.product(enumerate(names), repeat=2):
        pairs = [
            (a == b).mean()
            for x, a in enumerate(found[one]) for y, b in enumerate(found[other]) if i != j or x != y
        ]  # fmt: skip
        shares[i, j] = 100 * np.mean(pairs) if pairs else np.nan
    figure = Figure((WIDTH, 0.38 * len(names) + 1.3), layout="constrained")
    axes = figure.subplots()
    sns.heatmap(shares, ax=axes, annot=True, fmt=".0f", annot_kws={"fontsize": 8}, cmap="Greens", cbar=False)
    axes.set(xticklabels=names, yticklabels=names)
    axes.tick_params(axis="x", rotation=60, labelsize=8)
    axes.tick_params(axis="y", rotation=0, labelsize=8)
    diagonal = np.eye(len(names), dtype=bool)
    seeds = shares[diagonal & ~np.isnan(shares)]  # none where every setting has one seed
    text = f"{shares[~diagonal].mean():.0f} % of test images between settings"
    text += f", {seeds.mean():.0f} % between seeds of one setting" if len(seeds) else ""
    return described(figure, f"Two networks agree on {text}.")


@styled
def reliability(runs: pd.DataFrame) -> Figure | None:
    """Accuracy by confidence, a line for each setting; on the diagonal a network is as often right as it says."""
    found = outputs(runs)
    if not found:
        return None
    figure = Figure((WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 100], [0, 100], color=GREY, linewidth=0.8, linestyle="--")
    colors = [color for i, color in enumerate(sns.color_palette("colorblind")) if i not in (7, 8)]  # not grey, yellow
    looks = zip(itertools.cycle("osD^v"), itertools.cycle(colors))
    for (label, seeds), (marker, color) in zip(found.items(), looks, strict=False):
        probabilities, labels = (np.concatenate(parts) for parts in zip(*seeds, strict=True))
        confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
        place = np.minimum((confidence * 10).astype(int), 9)
        least = max(1, min(50, len(labels) // 20))  # images; a point of fewer says nothing
        bins = [b for b in range(10) if (place == b).sum() >= least]
        points = [(100 * confidence[place == b].mean(), 100 * right[place == b].mean()) for b in bins]
        axes.plot(*zip(*points, strict=True), color=color, marker=marker, markersize=3.5, linewidth=1, label=label)
    axes.set(xlabel="confidence (%)", ylabel="accuracy (%)", xlim=(0, 100), ylim=(0, 100))
    figure.legend(loc="outside right upper")
    found_of = [[calibration_of(*seed) for seed in seeds] for seeds in found.values()]
    gap = np.mean([np.mean([confidence - accuracy for confidence, accuracy, _ in each]) for each in found_of])
    text = f"on average {abs(gap):.1f} points {'more' if gap > 0 else 'less'} confident than right"
    return described(figure, f"Accuracy by confidence of {count(len(found), 'setting')}: {text}.")
