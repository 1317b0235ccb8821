"""The sentences of the summary, each computed from the records: what changes in them changes in the text.

A function returns a list of plain sentences (code between backticks) and none where there is nothing to say. Each
number says its n, and each direction comes with its uncertainty.
"""

import os
import statistics
from pathlib import Path

import numpy as np
import pandas as pd

from lib import records
from lib.params import DATASETS, SHAPE, TRAIN_IMAGES, Params
from lib.report import captions, cells, published, stats, tables
from lib.report.columns import count, interval, signed
from lib.study import ROOT, Study, base_params

# What else of a run is not its recipe.
BUDGET = ("epochs", "train_size", "val_size", "select", "seed", "dtype")
CHOICE = {
    "last": "Reported are the weights of the last epoch; the test set is used only after training.",
    "best_val": "Reported are the weights of the epoch with the best validation accuracy; the test set is used only "
    "after training.",
    "best_test": "Reported are the weights of the epoch with the best test accuracy: a leak, as in the paper's "
    "notebooks, which can make every accuracy here too high.",
}


ORIGIN = (
    "A reproduction of “ConvMixer Reproduction: Kernel and Patch Size Ablations on CIFAR-10” by Li, Lu and Liu "
    "(here the paper; [its notebooks](https://github.com/LOOK4869/ConvMixer)), which varies kernel and patch size "
    "in the network of [Patches Are All You Need?](https://arxiv.org/abs/2201.09792) by Trockman and Kolter (here "
    "the original). Every number of ours is computed from the records of runs."
)
ELSEWHERE = (
    "Kernel and patch size of ConvMixer ([Patches Are All You Need?](https://arxiv.org/abs/2201.09792) by Trockman and "
    "Kolter, here the original), varied as in Li, Lu and Liu's reproduction (here the paper), on other images than "
    "theirs: {data}. Nothing that they published stands beside it. Every number is computed from the records of runs."
)


def origin(study: Study, runs: pd.DataFrame) -> tuple[str, dict[str, str]]:
    """What a page is about, with links, and where it comes from: dates, commits, machines, licence, how to cite."""
    done = runs.loc[runs["status"] == "done", "record"]
    facts = {"study": f"`{study.name}`: {study.purpose}"}
    if study.base.dataset != "cifar10":
        facts["images"] = data(study, runs)
    if len(done):
        days = sorted({record["finished"][:10] for record in done})
        facts["runs"] = f"{len(done)} of {len(runs)}, finished {' to '.join(dict.fromkeys((days[0], days[-1])))}"
        facts["commit"] = ", ".join(sorted({f"`{str(r['environment'].get('commit'))[:12]}`" for r in done}))
        facts["machine"] = " and ".join(captions.machines(done))
    about = ORIGIN if study.base.dataset == "cifar10" else ELSEWHERE.format(data=study.base.data)
    return about, facts | links(records.study_folder(study.name))


def links(here: Path) -> dict[str, str]:
    """From a page in the folder `here` to the other pages that there are, the README, the licence and how to cite."""

    def link(text: str, path: Path) -> str:
        return f"[{text}]({os.path.relpath(path, here)})"

    front, play = records.REPORTS / "index.html", records.REPORTS / "play.html"
    pages = [link("all studies", front)] if here != records.REPORTS and front.exists() else []
    pages += [link("a network in your browser", play)] if play.exists() else []
    files = {"README": "README.md", "how to cite": "CITATION.cff", "MIT licence": "LICENSE"}
    source = ", ".join(link(text, ROOT / name) for text, name in files.items())
    return {**({"see also": ", ".join(pages)} if pages else {}), "source": source}


def data(study: Study, runs: pd.DataFrame) -> str:
    """What the images of a study are, as far as a finished run has seen them."""
    p, record = study.base, next(iter(runs["record"].dropna()), None)
    name = p.data if p.dataset in DATASETS else f"`{p.dataset}`"
    if record is None:
        return name
    classes = records.classes(record)
    counts = [record["train_images"], record["val_images"], records.test_images(record)]
    shown = [*classes[:8], *(["…"] if len(classes) > 8 else [])]
    return (
        f"{name}: {len(classes)} classes ({', '.join(shown)}); {counts[0]:,} images to train with, {counts[1]:,} for "
        f"validation, {counts[2]:,} for the test"
    )


def short(study: Study, runs: pd.DataFrame) -> list[str]:
    """The report in a few sentences: what is there, the baseline (or what there is in its place), trends, the cost."""
    reached = baseline(runs)[:1] or [said for what in ("kernel", "patch") for said in levels(runs, what)]
    said = [*progress(study, runs), *reached]
    for what in ("kernel", "patch"):
        if len(_finished(runs, what)) > 1:
            text = ablation(runs, what)[0]
            said.append(f"{what.capitalize()} size: {text[0].lower()}{text[1:]}")
    return said + others(runs) + compute(runs)[:1]


# What was asked for and what is there


def progress(study: Study, runs: pd.DataFrame) -> list[str]:
    """How many runs are finished, which are not, and the command that trains them."""
    done, left = runs[runs["status"] == "done"], runs[runs["status"] != "done"]
    if left.empty:
        which = (
            "The one run of `{}` is finished." if len(runs) == 1 else f"All {len(runs)} runs of `{{}}` are finished."
        )
        return [which.format(study.name)]
    command = f"`make runs STUDY={study.name}`"
    if done.empty and (left["status"] == "missing").all():
        return [
            f"No run of `{study.name}` has been trained yet, so there is nothing to show but what others "
            f"published. {command} trains its {count(len(runs), 'run')}, `make report STUDY={study.name}` does that "
            "and builds this page again."
        ]
    counts = ", ".join(f"{n} {word}" for word, n in left["status"].value_counts(sort=False).items())
    why = "; the table of all runs says why" if left["reason"].any() else ""
    of = f"{len(done)} of {count(len(runs), 'run')} of `{study.name}` {'is' if len(done) == 1 else 'are'} finished"
    return [f"{of}, {counts}{why}; {command} goes on."]


def budget(study: Study) -> list[str]:
    """The network, the training and the choice of the weights that the study's runs share."""
    p = study.base
    rate = f"a constant learning rate of {p.lr:g}" if p.schedule == "constant" else (
        f"a {p.schedule} schedule with peak learning rate {p.lr:g}"
    )  # fmt: skip
    images = f"{p.train_images:,} images" if p.train_images else "all training images that are not held out,"
    return [
        f"Apart from what a setting varies, a run trains {' or '.join(networks(study))} for "
        f"{count(p.epochs, 'epoch')} on {images} in batches of {p.batch_size}, with AdamW, {rate} and weight decay "
        f"{p.weight_decay:g}.",
        f"{p.val_size:,} training images are held out for validation." if p.val_size else "No image is held out.",
        CHOICE[p.select],
        f"{seeds(study)}.",
    ]


def networks(study: Study) -> list[str]:
    """What the networks of a study are called, without kernel and patch size: ConvMixer-128/4, for example."""
    return list(dict.fromkeys(run.params.network.partition(",")[0] for run in study.runs))


def seeds(study: Study) -> str:
    """With how many seeds the settings are trained: each with three, or each with one and some with more."""
    counts = {name: len(study.runs_of(name)) for run in study.runs for name in run.settings}
    usual = statistics.mode(counts.values())
    others = [f"{name} with {n}" for name, n in counts.items() if n != usual]
    return ", ".join([f"Each setting is trained with {count(usual, 'seed')}", *others])


def comparable(study: Study) -> list[str]:
    """Whether the published figures are for the same network and budget; if not, what may be compared."""
    p, others = study.base, []
    if p.dataset != "cifar10":
        return [f"The paper and the original have published nothing about {p.data}, so nothing stands beside it here."]
    written = "Every parameter is as the paper writes it, or as the README assumes where it is silent."
    said = [] if len(tables.overrides(study)) else [written]
    for who, epochs, theirs in (
        ("the paper", published.EPOCHS, Params()),
        ("the original", published.ORIGINAL_EPOCHS, base_params("original")),
    ):
        differ = []
        if (theirs_ := Params().network.partition(",")[0]) not in networks(study):
            differ.append(f"{' or '.join(networks(study))} instead of {theirs_}")
        if p.epochs != epochs:
            differ.append(f"{count(p.epochs, 'epoch')} instead of {epochs}")
        if p.train_size:
            differ.append(f"{p.train_size:,} training images instead of all")
        if any(value != getattr(theirs, name) for name, value in p.computed().items() if name not in (*SHAPE, *BUDGET)):
            differ.append("another recipe")
        if differ:
            said.append(f"This is not the experiment of {who}: {', '.join(differ)}.")
            others.append(who)
    if others:
        said.append(
            f"Directions may be compared with {' and '.join(others)}; levels and sizes of steps only with this in mind."
        )
    return said


# Learning rate and baseline


def learning_rate(study: Study, runs: pd.DataFrame) -> list[str]:
    """Which rate of the sweep ends best, and whether the runs use it."""
    table = tables.learning_rates(runs)
    table = table[table["n"] > 0] if len(table) else table
    if len(table) < 2:
        return []
    ordered = table.sort_values("ours", ascending=False)
    best, second = ordered.iloc[0], ordered.iloc[1]
    theirs = max(published.SWEEP, key=published.SWEEP.__getitem__)
    agree = ", as in the paper" if np.isclose(best["lr"], theirs) else f", where the paper's best is {theirs:g}"
    beside = [
        "The paper's sweep is another measure: its notebook trained k=7, p=4 of 256/8 with Adam, and printed the "
        "best test accuracy of any epoch."
    ]
    if not cells.of_the_paper(runs):
        agree, beside = "", []
    rates = _rates(runs)
    used = "that rate" if rates == [f"{best['lr']:g}"] else " or ".join(rates)
    lead = best["ours"] - second["ours"]
    seeds = _doubt(min(best["n"], second["n"]), lead)
    return [
        f"Of {len(table)} learning rates, {best['lr']:g} ends highest{agree}: {best['ours']:.2f} % on the "
        f"{best['images']} images (n={best['n']}), {lead:.2f} points above {second['lr']:g}.{seeds}",
        *([f"The other runs here use {used}."] if rates else []),
        *beside,
    ]


def baseline(runs: pd.DataFrame) -> list[str]:
    """The baseline's accuracy beside both published figures, and whether its training had ended."""
    row = tables.baseline(runs).iloc[0]
    if not row["n"]:
        return []
    tested = records.test_images(next(iter(runs["record"].dropna())))
    error = stats.binomial_error(row["ours"], tested)
    alone = f"{tested:,} test images alone leave a standard error of {error:.2f} points."
    printed = published.all_printed(9, 1)
    said = [f"The baseline reaches {_value(row)}.", alone] if not cells.of_the_paper(runs) else [
        f"The baseline reaches {_value(row)}: {_versus(row['ours_minus_paper'])} the paper's Table I, "
        f"{_versus(row['ours_minus_original'])} the original.",
        alone,
        f"The paper prints {len(printed)} figures for this one configuration, "
        f"{', '.join(f'{v:.2f}' for v in printed)}, which span {printed[-1] - printed[0]:.2f} points.",
    ]  # fmt: skip
    curve = tables.history(cells.of_setting(runs, row["setting"])).groupby("epoch").mean(numeric_only=True)
    if "val_acc" in curve and curve["val_acc"].notna().all() and len(curve) > 1:
        tail = max(1, len(curve) // 5)
        late, gap = curve["val_acc"].iloc[-1] - curve["val_acc"].iloc[-1 - tail], curve["train_acc"] - curve["val_acc"]
        when = "In the last epoch" if tail == 1 else f"Over the last {tail} of {len(curve)} epochs"
        said.append(
            f"{when} validation accuracy changed by {signed(late)} points; at the end it was "
            f"{_versus(-gap.iloc[-1])} that of training images without augmentation."
        )
    return said


# The two ablations


def levels(runs: pd.DataFrame, what: str) -> list[str]:
    """What each finished size of an ablation reaches, beside both published figures."""
    said = []
    for row in _finished(runs, what).to_dict("records"):
        theirs = {"paper": row["ours_minus_paper"], "original": row["ours_minus_original"]}
        versus = ", ".join(f"{_versus(points)} the {who}" for who, points in theirs.items() if pd.notna(points))
        reached = f"k={row['kernel']:.0f}, p={row['patch']:.0f} reaches {_value(row)}"
        said.append(f"{reached}{': ' if versus else ''}{versus}.")
    return said


def _finished(runs: pd.DataFrame, what: str) -> pd.DataFrame:
    """The rows of an ablation's table that have a finished run."""
    table = (tables.kernel if what == "kernel" else tables.patch)(runs)
    return table[table["n"] > 0]


def ablation(runs: pd.DataFrame, what: str) -> list[str]:
    """Whether the predicted order holds (larger kernels and smaller patches are better) and how sure that is."""
    if cells.ablation_runs(runs, what).empty:
        return []
    ours = _finished(runs, what)
    if len(ours) < 2:
        return [f"Fewer than two {what} sizes have a finished run, so there is nothing to compare yet."]
    sign = 1 if what == "kernel" else -1
    steps = tables.steps(runs, what, list(ours["setting"]))
    steps = steps[steps["n"] > 0]
    if steps.empty:
        return ["The finished settings share no seed, so no step is measured."]
    expected = "rises with the kernel" if sign > 0 else "falls as patches grow"
    found = "; ".join(_step(row) for row in steps.itertuples())
    gap = "" if len(steps) == len(cells.ablation(runs, what)) - 1 else ", other steps have no runs to compare"
    n = "n=" + " to ".join(map(str, dict.fromkeys((steps["n"].min(), steps["n"].max()))))
    who = "The paper predicts" if cells.of_the_paper(runs) else "Expected is"
    said = f"{found} points ({n}{gap}). {who} that accuracy {expected}: {_resolved(steps, sign)}."
    said += "".join(f" {row.step} also changes {row.also}, so it is not of the {what} alone."
                    for row in steps.itertuples() if row.also)  # fmt: skip
    return [said, *_certainty(runs, ours, steps, sign)]


def _step(row) -> str:
    return f"{row.step} {signed(row.difference)}{interval(row.half)}"


def _resolved(steps: pd.DataFrame, sign: int) -> str:
    """Which steps have an interval that leaves out zero, and on which side of it; one seed has no interval."""
    if steps["half"].isna().all():
        return "with one seed no step is resolved"
    clear = steps[steps["difference"].abs() > steps["half"]]
    sides = {"as predicted": clear[clear["difference"] * sign > 0], "against it": clear[clear["difference"] * sign < 0]}
    words = [f"{', '.join(side['step'])} {how}" for how, side in sides.items() if len(side)]
    open_steps = steps[~steps["step"].isin(clear["step"])]["step"]
    words += [f"{', '.join(open_steps)} not resolved"] if len(open_steps) else []
    return "; ".join(words)


def _certainty(runs: pd.DataFrame, ours: pd.DataFrame, steps: pd.DataFrame, sign: int) -> list[str]:
    """What the number of seeds allows to say about an order and its steps."""
    seeds = [cells.by_seed(runs, setting) for setting in ours["setting"]]
    common = sorted(set.intersection(*map(set, seeds)))
    if not common:
        return ["The settings share no seed, so their order is not tested."]
    trend = stats.trend(sign * np.array([[values[seed] for values in seeds] for seed in common]))
    said = []
    alone, tested = steps[steps["n"] == 1], steps[steps["images_p"].notna()]
    if len(alone):
        said.append(f"With one seed, seed noise is not ruled out for {', '.join(alone['step'])}.")
    if len(tested):
        apart = tested[stats.holm(tested["images_p"]) < 0.05]
        named = f" ({', '.join(apart['step'])})" if len(apart) else ""
        said.append(
            f"The two networks of a step differ on these test images by more than chance (McNemar's p-value below 0.05 "
            f"after Holm) in {len(apart)} of {count(len(tested), 'step')}{named}; that holds for these networks, not "
            "for the next seed's."
        )
    if trend.n == 1:
        return said
    if trend.levels >= 3:
        said.append(
            f"Page's trend test over {trend.n} seeds gives a p-value {_p(trend.p)} for the predicted order over all "
            f"sizes, not for each of its steps (a perfect order has 1 chance in {1 / trend.smallest_p:,.0f})."
        )
    if (smallest := steps["smallest_p"].max()) >= 0.05:
        said.append(
            "A sign-flip test of one step cannot reach a p-value of 0.05 with so few seeds: at best it is "
            f"{smallest:.2g}."
        )
    return said


# Other settings, and what the choice of the epoch does


def others(runs: pd.DataFrame) -> list[str]:
    """Each finished setting that is in no table of the paper, beside what was published for its k and p.

    Of one that is tried in several variants the one that is best in validation, where there is one.
    """
    said, tried = [], {}
    for row in tables.others(runs).to_dict("records"):
        name, _, changes = row["setting"].partition(" ")
        if row["n"] and changes and pd.notna(row["validation"]):
            tried.setdefault(name, []).append((row["validation"], changes, row["n"]))
        elif row["n"]:
            beside = f"; published elsewhere for its k and p: {row['published']}" if row["published"] else ""
            change = f", {tables.CHANGE.text(row)}" if pd.notna(row["change"]) else ""
            said.append(f"`{name}`{_size(runs, row)} reaches {_value(row)}{change}{_headline(runs, row)}{beside}.")
    for name, ways in tried.items():
        accuracy, changes, n = max(ways)
        if len(ways) > 1:
            said.append(f"`{name}`: of {len(ways)} variants {changes} is best in validation, {accuracy:.2f} % (n={n}).")
    return said


def _size(runs: pd.DataFrame, row: dict) -> str:
    """k, p and epochs of a ConvMixer, behind a name that does not say its size."""
    params = cells.of_setting(runs, row["setting"])["params"].iloc[0]
    if params["arch"] != "convmixer" or row["setting"] == f"k{params['kernel']}-p{params['patch']}":
        return ""
    return f" (k={params['kernel']}, p={params['patch']}, {count(params['epochs'], 'epoch')})"


def _headline(runs: pd.DataFrame, row: dict) -> str:
    """Beside a setting of the paper's network: the original's figure for its k and p, else the paper's headline."""
    params = cells.of_setting(runs, row["setting"])["params"].iloc[0]
    sized = params["arch"] == "convmixer" and (params["dim"], params["depth"]) == published.NETWORK
    if not sized or not cells.of_the_paper(runs):
        return ""
    if pd.notna(row["ours_minus_original"]):
        return f", {_versus(row['ours_minus_original'])} the original ({published.ORIGINAL_EPOCHS} epochs)"
    best = published.BASELINE
    what = f"{best.accuracy:.2f} %, k={best.kernel}, p={best.patch}, {published.EPOCHS} epochs"
    return f", {_versus(row['ours'] - best.accuracy)} the paper's headline figure ({what})"


def selection(runs: pd.DataFrame) -> list[str]:
    """What choosing the epoch changed, here and in the paper's notebooks."""
    if cells.ablation_runs(runs, "kernel", "patch").empty:
        return []
    table = tables.selection(runs)
    gains = (table["selected"] - table["last_epoch"]).dropna()
    theirs = (table["paper_best_on_test"] - table["paper_last_epoch"]).dropna()
    said = []
    if len(gains):
        said.append(
            f"Against the last epoch, the selected epoch changes test accuracy by {_range(gains)} points in these "
            "settings."
        )
    leaks = (table["best_on_test"] - table["last_epoch"]).dropna()
    if len(leaks):
        said.append(
            f"Against the last epoch, the best test accuracy of any epoch gains {_range(leaks)} points: the leak, of "
            "which one run says little, since its last epoch may happen to be its best."
        )
    elif len(gains):
        said.append(
            "No run here looked at the test set every epoch, so what that leak would be worth is not known; "
            "`select: best_test` in a file of `params/studies/` records it."
        )
    if len(theirs):
        said.append(f"In the paper's own notebooks, which printed that best, it was worth {_range(theirs)} points.")
    return said


# Compute, provenance, limits


def compute(runs: pd.DataFrame) -> list[str]:
    """What everything cost."""
    done = runs[runs["status"] == "done"]
    if done.empty:
        return []
    machines = captions.machines(done["record"])
    said = [
        f"{count(len(done), 'run')} took {records.span(done['seconds'].sum())} in all, on {' and '.join(machines)}."
    ]
    said += captions.of_one_machine(runs)
    said.append("Runs may have shared their machine with other work; `make bench` is what compares speeds.")
    return said


def speed(bench: dict | None) -> list[str]:
    """How much faster than PyTorch the native layers are on the machine of `make bench`."""
    if bench is None:
        return ["`make bench` measures that on this machine."]
    table = tables.speed(bench)
    table = table[table["over_default"].notna() & table["over_tuned"].notna()] if len(table) else table
    if table.empty:
        return []
    tuned = " or ".join(f"`{name}`" for name in dict.fromkeys(table["tuned"]))
    said = [
        f"On {records.machine_name(bench)} whole training steps of "
        f"{count(len(table), 'network')} ran {_factors(table['over_default'])} times as fast as with PyTorch's "
        f"defaults, and {_factors(table['over_tuned'])} times as fast as with the fastest of PyTorch's own options "
        f"there ({tuned}).",
    ]
    alike = table[["float32_over_default", "float32_over_tuned"]].dropna()
    if len(alike) and (table["native"] == "bfloat16").any():
        said.append(
            f"Some of that is bfloat16; with float32 on both sides it is {_factors(alike['float32_over_default'])} and "
            f"{_factors(alike['float32_over_tuned'])}."
        )
    if feeding := bench.get("feeding"):
        rates = " and ".join(f"{rate:,} images a second with {workers} workers" for workers, rate in feeding.items())
        said.append(f"The paper's augmentation and the loading deliver {rates}: the most that a GPU could be fed.")
    return said


def _factors(ratios: pd.Series) -> str:
    return f"{ratios.min():.1f} to {ratios.max():.1f}" if len(ratios) > 1 else f"{ratios.iloc[0]:.1f}"


def limits(study: Study, runs: pd.DataFrame) -> list[str]:
    """What the number of seeds, the budget and the choice of weights leave open."""
    done = runs[runs["status"] == "done"]
    said = []
    n = int(min((len(cells.by_seed(runs, s)) for names in done["settings"] for s in names), default=0))
    passes = study.base.epochs * (study.base.train_images or 0) / TRAIN_IMAGES
    of_the_paper = study.base.dataset == "cifar10"
    near = min(published.SEED_NOISE, key=lambda epochs: abs(epochs - passes))
    noise = published.SEED_NOISE[near]
    more = "; these runs see fewer images, and more noise is to be expected" if passes < near else ""
    if n == 1:
        scale = (
            f" For scale, another CIFAR-10 network varied with the seed by a standard deviation of {noise:.2f} points "
            f"after {near} epochs (Jordan, arXiv 2304.01910), which is {noise * 2**0.5:.2f} for the difference of two "
            f"runs{more}."
        )
        said.append(
            "Seeds: where a setting has only one, it has no interval and no error bar."
            + (scale if of_the_paper else "")
        )
    elif n > 1:
        said.append(
            f"Seeds: every finished setting has at least {n}. An interval over so few assumes that seeds vary "
            f"normally; the smallest p-value of a sign-flip test over {n} seeds is {2.0 ** (1 - n):.2g}."
        )
    if of_the_paper and study.base.epochs < published.ORIGINAL_EPOCHS:
        said.append(
            f"Budget: {count(study.base.epochs, 'epoch')} against the original's {published.ORIGINAL_EPOCHS}. A "
            "setting that learns slowly is at a disadvantage here that a longer training may remove."
        )
    families = "one family of networks" if len(networks(study)) == 1 else "few families of networks"
    tuning = "; a setting that would prefer another learning rate is not given it"
    if len(rates := _rates(runs)) > 1:
        tuning = f" but the learning rate, which is {' or '.join(rates)}"
    recipe = f"one recipe for every setting{tuning}" if runs["settings"].nunique() > 1 else "one setting"
    said.append(f"Data and tuning: one data set, {families}, and {recipe}.")
    return said


# Wording


def _value(row) -> str:
    return f"{row['ours']:.2f}{interval(row['half'])} % (n={row['n']})"


def _versus(difference: float) -> str:
    return f"{abs(difference):.2f} points {'below' if difference < 0 else 'above'}"


def _rates(runs: pd.DataFrame) -> list[str]:
    """The learning rates of the runs that are not of the sweep, the usual one first."""
    return [f"{lr:g}" for lr in runs.loc[~cells.is_sweep(runs), "lr"].value_counts().index]


def _range(values) -> str:
    low, high = signed(min(values)), signed(max(values))
    return low if low == high else f"{low} to {high}"


def _p(p: float) -> str:
    return f"of {p:.2g}" if p >= 1e-4 else "below 0.0001"


def _doubt(n: int, gap: float) -> str:
    """A warning where two networks of one seed are no further apart than two seeds of one network often are."""
    often = 2 * 2**0.5 * max(published.SEED_NOISE.values())
    return " With one seed, another could reverse that." if n == 1 and gap < often else ""
