"""The paper's claims, each with a rule and the verdict that the records give.

A rule says which study decides, by which measure, and what counts as support. A verdict is one of four words and is
computed: supported, contradicted, not resolved (the interval at this n holds both answers) or not run. A difference
over paired seeds has its 95 % interval; a difference of two single runs is judged against what seeds alone give in
95 % of such pairs. `laptop` is judged when it has all its seeds: who looks after each seed, and stops at a word, finds
differences by chance more often than once in twenty.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd
import scipy.stats

from lib import records
from lib import study as studies
from lib.report import cells, published, stats
from lib.report.columns import interval, shows, signed, verdict, words

SUPPORTED, CONTRADICTED = "supported", "contradicted"
NOT_RESOLVED, NOT_RUN = "not resolved", "not run"
OF_RUNS, OF_BENCH, OF_PAPER = "runs of ours", "the bench", "its own figures"  # what a verdict rests on


class Verdict(NamedTuple):
    """What the records say of a claim: a word, and in a sentence the figures and n that it rests on."""

    word: str
    found: str


class Claim(NamedTuple):
    """A claim of the paper: in its own order, in our words."""

    claim: str
    where: str  # in the paper
    basis: str
    rule: str
    judge: Callable[["Evidence"], Verdict]


# Studies and settings of 256/8 with k=9, p=4 and the paper's epochs, each with several seeds; and from how many degrees
# of freedom on their spread is used: with fewer, Student's factor is above 3.
RECIPES = (("as_run", "patch-4"), ("paper", "patch-4"), ("tuned", "patch-4"), ("original", "cut-30"))
ENOUGH = 4


class Noise(NamedTuple):
    """How far apart (points) seeds alone bring two single runs in 95 % of pairs, and where that is from."""

    half: float
    source: str

    def __str__(self) -> str:
        return f"seeds alone: up to {self.half:.2f} ({self.source})"


class Evidence:
    """The runs and the bench that lie under reports/, read once."""

    @functools.cache  # noqa: B019  lives as long as a report is built
    def runs(self, study: str) -> pd.DataFrame:
        """The runs of a study, as records.load gives them; none where its file is gone.

        Those of other data than the paper's count as missing.
        """
        if study not in studies.names():
            return pd.DataFrame(columns=list(records.COLUMNS))
        runs = records.load(studies.load(study))
        return runs if cells.of_the_paper(runs) else runs.assign(status="missing", record=None)

    def accuracy(self, study: str, setting: str) -> dict[int, float]:
        """Test accuracy (%) of a setting's finished runs, by seed."""
        return cells.by_seed(self.runs(study), setting)

    def records(self, study: str, setting: str) -> list[dict]:
        """The records of a setting's finished runs."""
        return list(cells.of_setting(self.runs(study), setting)["record"].dropna())

    def noise(self, epochs: int = published.EPOCHS) -> Noise:
        """What seeds alone make of the difference of two single runs of 256/8 after so many epochs.

        For the paper's epochs from the seeds of all recipes at p=4, once they are enough for a spread; before that,
        and for others, from another network's after no more epochs than these.
        """
        half, free = stats.apart_by_chance([list(self.accuracy(*recipe).values()) for recipe in RECIPES])
        if epochs == published.EPOCHS and free >= ENOUGH:
            return Noise(half, "the seeds of all our recipes at p=4")
        after = max(known for known in published.SEED_NOISE if known <= epochs)
        half = scipy.stats.norm.ppf((1 + stats.LEVEL) / 2) * 2**0.5 * published.SEED_NOISE[after]
        return Noise(half, f"another network's seeds after {after} epochs, Jordan, arXiv 2304.01910")

    @functools.cached_property
    def benches(self) -> list[dict]:
        """The newest first."""
        return records.benches()


# ---- How a difference becomes a word ----


def of_paired(difference: stats.Paired) -> str:
    """supported if the whole interval lies above zero, contradicted if below."""
    if difference.n == 0:
        return NOT_RUN
    if not abs(difference.mean) > difference.half:  # nor where there is no interval
        return NOT_RESOLVED
    return SUPPORTED if difference.mean > 0 else CONTRADICTED


def of_parts(parts: list[stats.Paired]) -> str:
    """Of a claim with several differences: supported by all; contradicted by one that would be below zero even at 5 %
    for all of them together (Bonferroni), since of many one is by chance.
    """
    if not all(part.n for part in parts):
        return NOT_RUN
    if any(part.mean < -stats.wider(part.half, part.n, len(parts)) for part in parts):
        return CONTRADICTED
    return SUPPORTED if all(of_paired(part) == SUPPORTED for part in parts) else NOT_RESOLVED


def of_single(difference: float, noise: Noise) -> str:
    """The same for one run against one other, by what seeds alone would give that."""
    if abs(difference) <= noise.half:
        return NOT_RESOLVED
    return SUPPORTED if difference > 0 else CONTRADICTED


def of_all(verdicts: list[str]) -> str:
    """Of what several machines say: contradicted by one, supported by all."""
    for word in (CONTRADICTED, NOT_RUN, NOT_RESOLVED):
        if word in verdicts:
            return word
    return SUPPORTED


def points(difference: stats.Paired | stats.Mean) -> str:
    """+1.23 ± 0.45 points (n=5)."""
    return f"{signed(difference.mean)}{interval(difference.half)} points (n={difference.n})"


def not_run(*what: str) -> Verdict:
    return Verdict(NOT_RUN, f"It needs {' and '.join(what)}.")


def of_laptop(evidence: Evidence, settings: list[str], word: str, found: str) -> Verdict:
    """A verdict of `laptop`'s paired seeds; not resolved before each of these settings has all of them."""
    design = studies.load("laptop")
    done = min(len(evidence.accuracy("laptop", setting)) for setting in settings)
    asked = max(len(design.runs_of(setting)) for setting in settings)
    if done < asked and word in (SUPPORTED, CONTRADICTED):
        return Verdict(NOT_RESOLVED, f"{found} So far {done} of {asked} seeds; judged when all are there.")
    return Verdict(word, found)


# ---- The claims ----


def every_step(what: str, evidence: Evidence) -> Verdict:
    """Each level of an ablation against the one before."""
    levels = published.KERNELS if what == "kernel" else published.PATCHES[::-1]
    steps = [(f"{what}-{low}", f"{what}-{high}") for low, high in itertools.pairwise(levels)]
    found = [stats.paired(*(evidence.accuracy("laptop", setting) for setting in step)) for step in steps]
    if not all(step.n for step in found):
        return not_run("every setting of `laptop`")
    names = [f"{what[0]}={low}→{high}" for low, high in itertools.pairwise(levels)]
    text = "; ".join(f"{name} {points(step)}" for name, step in zip(names, found, strict=True)) + "."
    shorter = [stats.paired(*(evidence.accuracy("quick", setting) for setting in step)) for step in steps]
    against = [f"{name} {points(step)}" for name, step in zip(names, shorter, strict=True)
               if of_paired(step) == CONTRADICTED]  # fmt: skip
    if against:
        text += f" In `quick`, much shorter: {'; '.join(against)}."
    return of_laptop(evidence, [f"{what}-{level}" for level in levels], of_parts(found), text)


def first_step_gains_most(evidence: Evidence) -> Verdict:
    by_seed = [evidence.accuracy("laptop", f"kernel-{kernel}") for kernel in published.KERNELS]
    seeds = sorted(set.intersection(*map(set, by_seed)))
    if not seeds:
        return not_run("every kernel of `laptop`")
    first, *others = [
        {seed: after[seed] - before[seed] for seed in seeds} for before, after in itertools.pairwise(by_seed)
    ]
    leads = [stats.paired(other, first) for other in others]
    text = "; ".join(
        f"k=3→5 gains {points(lead)} more than k={low}→{high}"
        for lead, (low, high) in zip(leads, itertools.pairwise(published.KERNELS[1:]), strict=True)
    )
    return of_laptop(evidence, [f"kernel-{kernel}" for kernel in published.KERNELS], of_parts(leads), f"{text}.")


def size_of_the_kernel_gain(evidence: Evidence) -> Verdict:
    small, large = (list(evidence.accuracy("paper", f"kernel-{kernel}").values()) for kernel in (3, 9))
    if not small or not large:
        return not_run("k=3 and k=9 of `paper`")
    claimed = published.KERNEL[-1].accuracy - published.KERNEL[0].accuracy
    ours, noise = float(np.mean(large) - np.mean(small)), evidence.noise()
    noise = noise._replace(half=noise.half * 2**0.5)  # of a difference of two gains
    word = SUPPORTED if abs(ours - claimed) <= noise.half else CONTRADICTED
    n = min(len(small), len(large))
    return Verdict(word, f"{signed(ours)} points (n={n}) against {signed(claimed)}; {noise}.")


def baseline_accuracy(evidence: Evidence) -> Verdict:
    ours = list(evidence.accuracy("paper", cells.BASELINE).values())
    if not ours:
        return not_run("k=9, p=1 of `paper`")
    noise, lead = evidence.noise(), float(np.mean(ours)) - published.BASELINE.accuracy
    word = SUPPORTED if lead >= -noise.half else CONTRADICTED
    return Verdict(word, f"{np.mean(ours):.2f} % (n={len(ours)}), {signed(lead)} points; {noise}.")


def cost_of_small_patches(evidence: Evidence) -> Verdict:
    bench = next(iter(evidence.benches), {"networks": []})
    networks = plain_networks(bench)
    if not {(9, 4), (9, 1)} <= set(networks):
        return not_run("`make bench`")
    (cheap, _, less), (dear, _, more) = networks[9, 4], networks[9, 1]
    macs = published.MEGA_MACS[9, 1] / published.MEGA_MACS[9, 4]
    word = SUPPORTED if dear < cheap and more > less else CONTRADICTED
    return Verdict(
        word,
        f"p=1 against p=4: {macs:.0f} times the multiply-accumulates, {more / less:.1f} times the memory, "
        f"{cheap / dear:.0f} times the time an image (PyTorch's defaults, {records.machine_name(bench)}).",
    )


def throughput_falls(evidence: Evidence) -> Verdict:
    words_, found = [], []
    for bench in evidence.benches:
        networks = plain_networks(bench)
        if not {(kernel, 1) for kernel in published.KERNELS} <= set(networks):
            continue
        (small, small_turns, _), *_, (large, large_turns, _) = by_kernel = [networks[k, 1] for k in published.KERNELS]
        p = scipy.stats.mannwhitneyu(large_turns, small_turns, alternative="less").pvalue
        noticeable = large < 0.9 * small
        words_.append(CONTRADICTED if not noticeable else SUPPORTED if p <= 0.05 else NOT_RESOLVED)
        speeds = ", ".join(f"{speed:.1f}" for speed, *_ in by_kernel)
        turns = f"{len(small_turns)} and {len(large_turns)} turns of k=3 and k=9: p-value {p:.2g}"
        found.append(f"{records.machine_name(bench)}: {speeds} ({turns})")
    if not found:
        return not_run("`make bench`")
    kernels = ", ".join(map(str, published.KERNELS))
    text = f"Images/s at k={kernels} with PyTorch's defaults on {'; '.join(found)}. The paper's GPU was not at hand."
    return Verdict(of_all(words_), text)


def plain_networks(bench: dict) -> dict[tuple[int, int], tuple[float, list[float], float]]:
    """Of each network of 256/8 that was measured with PyTorch's defaults: images/s, its turns and MB, by (k, p)."""
    found = {}
    for network in bench["networks"]:
        plain = network["variants"].get("PyTorch, defaults", {})
        if (network["dim"], network["depth"]) == published.NETWORK and "images_per_second" in plain:
            speed = plain["images_per_second"]
            found[network["kernel"], network["patch"]] = speed, plain.get("turns") or [speed], plain["peak_memory_mb"]
    return found


def parameters_grow_modestly(evidence: Evidence) -> Verdict:
    small, large = published.PARAMETERS[3, 1], published.PARAMETERS[9, 1]
    word = SUPPORTED if large < 1.5 * small else CONTRADICTED
    return Verdict(word, f"{small:,} at k=3, {large:,} at k=9: {large / small:.2f} times.")


def compromise(evidence: Evidence) -> Verdict:
    others = [*(f"kernel-{kernel}" for kernel in published.KERNELS), "patch-4"]
    accuracy = {name: evidence.accuracy("laptop", name) for name in (*others, "patch-2")}
    if not all(accuracy.values()):
        return not_run("every setting of `laptop`")
    runs = cells.on_one_machine(evidence.runs("laptop"))
    speed = {name: cells.of_setting(runs, name)["fastest_images_per_second"].max() for name in accuracy}
    if not all(value > 0 for value in speed.values()):
        return Verdict(NOT_RESOLVED, "No machine has trained all of them, and speeds of several cannot be compared.")
    middle = accuracy["patch-2"]
    lead = {name: stats.paired(accuracy[name], middle) for name in others}
    faster = [name for name in others if speed[name] > speed["patch-2"]]
    slower = [name for name in others if name not in faster]
    said = [f"{points(lead[name])} over {name}, which is faster" for name in faster]
    if slower:
        most = max(-lead[name].mean for name in slower)
        times = speed["patch-2"] / min(speed[name] for name in slower)
        said.append(f"the slower settings gain {signed(most)} points at most, for up to {times:.1f} times the time")
    return of_laptop(evidence, list(accuracy), of_parts([lead[name] for name in faster]), f"p=2: {'; '.join(said)}.")


def ranks_as_the_original(evidence: Evidence) -> Verdict:
    settings = {f"kernel-{kernel}": (kernel, 1) for kernel in published.KERNELS}
    settings |= {f"patch-{patch}": (9, patch) for patch in published.PATCHES[1:]}
    accuracy = {name: evidence.accuracy("laptop", name) for name in settings}
    if not all(accuracy.values()):
        return not_run("every setting of `laptop`")
    theirs = {name: published.original(*size).accuracy for name, size in settings.items()}
    noise = evidence.noise(published.ORIGINAL_EPOCHS)
    pairs = [(low, high) for low, high in itertools.combinations(sorted(settings, key=theirs.__getitem__), 2)
             if theirs[high] - theirs[low] > noise.half]  # fmt: skip
    found = [stats.paired(accuracy[low], accuracy[high]) for low, high in pairs]
    words_ = [of_paired(difference) for difference in found]
    against = [f"{low} above {high}" for (low, high), word in zip(pairs, words_, strict=True) if word == CONTRADICTED]
    named = f" ({'; '.join(against)})" if against else ""
    return of_laptop(
        evidence, list(settings), of_parts(found),
        f"Of the {len(pairs)} pairs that are further apart in the original than seeds alone bring them "
        f"({noise.half:.2f} points, {noise.source}) {words_.count(SUPPORTED)} are ordered as there, {len(against)} the "
        f"other way{named}, {words_.count(NOT_RESOLVED)} are not resolved, each pair at 5 %.",
    )  # fmt: skip


def best_learning_rate(evidence: Evidence) -> Verdict:
    ends, n = {}, []
    for setting in ("lr-1e-4", "lr-1e-3", "lr-1e-2"):
        done = evidence.records("paper", setting)
        if not done:
            return not_run("the learning rates of `paper`")
        ends[setting] = float(np.mean([record["history"][-1]["val_acc"] for record in done]))
        n.append(len(done))
    lead = ends["lr-1e-3"] - max(value for name, value in ends.items() if name != "lr-1e-3")
    noise = evidence.noise(published.SWEEP_EPOCHS)
    text = ", ".join(f"{name[3:]}: {value:.2f} %" for name, value in ends.items())
    shorter = {name: stats.mean(list(evidence.accuracy("laptop", name).values())) for name in ends}
    best = max(shorter, key=lambda name: shorter[name].mean) if all(found.n for found in shorter.values()) else ""
    beside = f" In `laptop`, with another recipe, {best[3:]} is best (n={shorter[best].n})." if best else ""
    return Verdict(
        of_single(lead, noise),
        f"{text} on validation images (n={min(n)}); 1e-3 leads by {signed(lead)} points; {noise}.{beside}",
    )


def epochs_explain_the_gap(evidence: Evidence) -> Verdict:
    """What more epochs are worth depends on the recipe that they are counted from: both ends have to agree."""
    whole, short = (list(evidence.accuracy("original", setting).values()) for setting in ("patch-4", "cut-30"))
    if not short or not whole:
        return not_run("p=4 of `original`, whole and cut to 30 epochs")
    best = max(np.mean(list(found.values())) for recipe in RECIPES if (found := evidence.accuracy(*recipe)))
    gap, noise = published.original(9, 4).accuracy - published.printed("patch-4").accuracy, evidence.noise()
    own, least = (float(np.mean(whole) - level) for level in (np.mean(short), best))
    word = of_single(least - gap / 2, noise)
    if word != of_single(own - gap / 2, noise):
        word = NOT_RESOLVED
    return Verdict(
        word,
        f"At p=4 the original's recipe gains {signed(own)} points from 30 to {published.ORIGINAL_EPOCHS} epochs "
        f"(n={len(short)} and {len(whole)}), {own / gap:.0%} of the gap of {gap:.2f}; it ends {signed(least)} points "
        f"above the best recipe of 30 epochs, {least / gap:.0%}; {noise}.",
    )


def selected_on_validation(evidence: Evidence) -> Verdict:
    printed = (*(f"kernel-{k}" for k in published.KERNELS), *(f"patch-{p}" for p in published.PATCHES))
    gaps = [published.printed(setting).accuracy - published.last_epoch(setting) for setting in printed]
    text = (
        f"Its notebooks have no validation split and print the best test accuracy of any epoch, {min(gaps):.2f} to "
        f"{max(gaps):.2f} points above the last epoch's."
    )
    if done := evidence.records("as_run", "patch-4"):
        tests = [[epoch["test_acc"] for epoch in record["history"]] for record in done]
        last, usual = (stats.mean([max(test) - np.mean(test[-n:]) for test in tests]) for n in (1, 10))
        text += (
            f" Ours, run as they were at p=4: {points(last)} above the last epoch's, {signed(usual.mean)} above the "
            "mean of the last ten epochs'."
        )
    return Verdict(CONTRADICTED if max(gaps) > 0 else SUPPORTED, text)


def slightly_lower(evidence: Evidence) -> Verdict:
    gap = published.original(9, 1).accuracy - published.BASELINE.accuracy
    whole = published.original(9, 1).accuracy - published.original(3, 1).accuracy
    word = SUPPORTED if gap < whole else CONTRADICTED
    return Verdict(word, f"{gap:.2f} points lower, where k=3 is {whole:.2f} points lower than k=9 in the original.")


def competitive_with_attention(evidence: Evidence) -> Verdict:
    convmixer, vit = (evidence.accuracy("laptop", setting) for setting in ("patch-4", "vit"))
    difference = stats.paired(vit, convmixer)
    if not difference.n:
        return not_run("`vit` and p=4 of `laptop`")
    found = f"ConvMixer over ViT at p=4: {points(difference)}. The paper trained no attention model."
    return of_laptop(evidence, ["patch-4", "vit"], of_paired(difference), found)


def ten_hours(evidence: Evidence) -> Verdict:
    row = published.COMPUTE["kernel"]
    each = row.hours / (row.epochs / published.EPOCHS)
    word = SUPPORTED if 8 <= each <= 12 else CONTRADICTED
    return Verdict(word, f"Table V has {row.hours:.1f} hours for four configurations: {each:.1f} each.")


CLAIMS = (
    Claim("ConvMixer-256/8 with k=9, p=1 reaches 88.94 %", "Table I", OF_RUNS,
          "`paper`, k=9, p=1: not lower by more than seeds alone", baseline_accuracy),
    Claim("accuracy rises with k at every step", "abstract, IV-B", OF_RUNS,
          "`laptop`, paired seeds: each step's 95 % interval above zero", functools.partial(every_step, "kernel")),
    Claim("the step from k=3 to k=5 gains most", "IV-B", OF_RUNS,
          "`laptop`, paired seeds: it exceeds each other step by an interval above zero", first_step_gains_most),
    Claim("k=9 gains up to 3.29 points over k=3", "abstract, Table II", OF_RUNS,
          "`paper`: our gain differs from theirs by no more than seeds alone", size_of_the_kernel_gain),
    Claim("smaller patches are better at every step", "abstract, IV-C", OF_RUNS,
          "`laptop`, paired seeds: each step's 95 % interval above zero", functools.partial(every_step, "patch")),
    Claim("small patches cost computation and memory", "IV-C, V", OF_BENCH,
          "PyTorch's defaults: p=1 slower and larger than p=4", cost_of_small_patches),
    Claim("throughput falls noticeably with k", "V", OF_BENCH,
          "PyTorch's defaults, every machine: k=9 at most 0.9 times as fast as k=3, rank test of the turns at 5 %",
          throughput_falls),
    Claim("parameters grow modestly with k", "II-A, V", OF_PAPER,
          "less than 1.5 times from k=3 to k=9", parameters_grow_modestly),
    Claim("p=2 is a reasonable compromise", "V", OF_RUNS,
          "`laptop`: no faster setting is as accurate, by paired intervals", compromise),
    Claim("the settings rank as in the original", "IV-D", OF_RUNS,
          "`laptop`, paired seeds: every pair that the original tells apart resolved, in its order",
          ranks_as_the_original),
    Claim("0.001 is the best learning rate", "III-C, Fig. 2", OF_RUNS,
          "`paper`, k=7, p=4, validation: ahead by more than seeds alone", best_learning_rate),
    Claim("too few epochs explain most of the gap", "IV-D", OF_RUNS,
          "p=4: `original` at 200 epochs gains more than half of the gap over 30 of its own and of the best recipe",
          epochs_explain_the_gap),
    Claim("the best checkpoint is chosen on validation", "III-C", OF_PAPER,
          "its notebooks: no printed figure above the last epoch's", selected_on_validation),
    Claim("accuracy is slightly lower than the original's", "IV-D", OF_PAPER,
          "slightly: by less than all that the original's kernel ablation changes", slightly_lower),
    Claim("convolutions compete with attention", "V, VI", OF_RUNS,
          "`laptop`, equal parameters, budget and seeds: ConvMixer's interval over a ViT above zero",
          competitive_with_attention),
    Claim("30 epochs took about ten hours a configuration", "IV-D", OF_PAPER, "its Table V: 8 to 12", ten_hours),
)  # fmt: skip


@shows(
    words("claim", "the paper's claim"), verdict("verdict", "verdict"), words("found", "found"),
    words("rule", "what decides"), words("where", "where", "short"),
)  # fmt: skip
def ledger(evidence: Evidence) -> pd.DataFrame:
    """Every claim with its rule, the figures and the verdict."""
    rows = []
    for claim in CLAIMS:
        judged = claim.judge(evidence)
        rows.append({
            "claim": claim.claim, "where": claim.where, "basis": claim.basis, "rule": f"{claim.basis}: {claim.rule}",
            "found": judged.found, "verdict": judged.word,
        })  # fmt: skip
    return pd.DataFrame(rows)


def tally(evidence: Evidence, study: studies.Study | None = None) -> list[str]:
    """How many claims came out how, by what judged them; nothing on the page of a study that is of other data."""
    if study and study.base.dataset != "cifar10":
        return []
    table, said = ledger(evidence), []
    for basis in (OF_RUNS, OF_BENCH, OF_PAPER):
        counts = table.loc[table["basis"] == basis, "verdict"].value_counts()
        words_ = [f"{counts[word]} {word}" for word in (SUPPORTED, CONTRADICTED, NOT_RESOLVED, NOT_RUN)
                  if word in counts]  # fmt: skip
        said.append(f"{counts.sum()}{'' if said else ' are judged'} by {basis}: {', '.join(words_)}")
    return [f"Of {len(CLAIMS)} claims of the paper {'; '.join(said)}."]
