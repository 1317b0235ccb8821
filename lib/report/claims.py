"""The paper's claims, each with a rule and the verdict that the records give.

Rules about accuracies of ours were stated before the runs that they judge; those about the bench and the paper's own
figures were not. A rule says which study decides, by which measure, and what counts as support. A verdict is one of
four words and is computed: supported, contradicted, not resolved (the interval at this n holds both answers) or not
run. A difference over paired seeds has its 95 % interval; a difference of two single runs is judged against twice the
standard deviation that seeds alone would give it.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pandas as pd

from lib import records
from lib import study as studies
from lib.report import cells, published, stats
from lib.report.columns import interval, shows, signed, verdict, words

SUPPORTED, CONTRADICTED = "supported", "contradicted"
NOT_RESOLVED, NOT_RUN = "not resolved", "not run"


class Verdict(NamedTuple):
    """What the records say of a claim: a word, and in a sentence the figures and n that it rests on."""

    word: str
    found: str


class Claim(NamedTuple):
    """A claim of the paper: in its own order, in our words."""

    claim: str
    where: str  # in the paper
    rule: str
    judge: Callable[["Evidence"], Verdict]


class Evidence:
    """The runs and the bench that lie under reports/, read once."""

    @functools.cache  # noqa: B019  lives as long as a report is built
    def runs(self, study: str) -> pd.DataFrame:
        """The runs of a study, as records.load gives them; those of other data than the paper's count as missing."""
        runs = records.load(studies.load(study))
        return runs if cells.of_the_paper(runs) else runs.assign(status="missing", record=None)

    def accuracy(self, study: str, setting: str) -> dict[int, float]:
        """Test accuracy (%) of a setting's finished runs, by seed."""
        return cells.by_seed(self.runs(study), setting)

    def records(self, study: str, setting: str) -> list[dict]:
        """The records of a setting's finished runs."""
        return list(cells.of_setting(self.runs(study), setting)["record"].dropna())

    def noise(self, epochs: int = published.EPOCHS) -> tuple[float, str]:
        """Standard deviation (points) of the difference of two single runs of 256/8 that differ in their seed alone.

        For the paper's epochs from the three seeds of its p=4 where they are finished; before that, and for others,
        from another network's after no more epochs than these.
        """
        seeds = list(self.accuracy("paper", "patch-4").values())
        if epochs == published.EPOCHS and len(seeds) >= 3:
            return 2**0.5 * float(np.std(seeds, ddof=1)), f"{len(seeds)} seeds of `paper` at p=4"
        after = max(known for known in published.SEED_NOISE if known <= epochs)
        source = f"another network's seeds after {after} epochs, Jordan, arXiv 2304.01910"
        return 2**0.5 * published.SEED_NOISE[after], source

    @functools.cached_property
    def benches(self) -> list[dict]:
        """The newest first."""
        return records.benches()


# ---- How a difference becomes a word ----


def of_paired(difference: stats.Paired) -> str:
    """supported if the whole interval lies above zero, contradicted if below."""
    if difference.n == 0:
        return NOT_RUN
    if difference.n == 1 or abs(difference.mean) <= difference.half:
        return NOT_RESOLVED
    return SUPPORTED if difference.mean > 0 else CONTRADICTED


def of_single(difference: float, noise: float) -> str:
    """The same for one run against one other, by twice the deviation that seeds alone would give that."""
    if abs(difference) <= 2 * noise:
        return NOT_RESOLVED
    return SUPPORTED if difference > 0 else CONTRADICTED


def of_all(verdicts: list[str]) -> str:
    """Of a claim with several parts: contradicted by one part, supported by all."""
    for word in (CONTRADICTED, NOT_RUN, NOT_RESOLVED):
        if word in verdicts:
            return word
    return SUPPORTED


def points(difference: stats.Paired | stats.Mean) -> str:
    """+1.23 ± 0.45 points (n=5)."""
    return f"{signed(difference.mean)}{interval(difference.half)} points (n={difference.n})"


def not_run(*what: str) -> Verdict:
    return Verdict(NOT_RUN, f"It needs {' and '.join(what)}.")


# ---- The claims ----


def every_step(what: str, evidence: Evidence) -> Verdict:
    """Each level of an ablation against the one before, in the study with five paired seeds."""
    levels = published.KERNELS if what == "kernel" else published.PATCHES[::-1]
    steps = [(f"{what}-{low}", f"{what}-{high}") for low, high in itertools.pairwise(levels)]
    found = [stats.paired(*(evidence.accuracy("laptop", setting) for setting in step)) for step in steps]
    if not all(step.n for step in found):
        return not_run("every setting of `laptop`")
    names = [f"{what[0]}={low}→{high}" for low, high in itertools.pairwise(levels)]
    text = "; ".join(f"{name} {points(step)}" for name, step in zip(names, found, strict=True))
    return Verdict(of_all([of_paired(step) for step in found]), f"{text}.")


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
    return Verdict(of_all([of_paired(lead) for lead in leads]), f"{text}.")


def size_of_the_kernel_gain(evidence: Evidence) -> Verdict:
    small, large = (list(evidence.accuracy("paper", f"kernel-{kernel}").values()) for kernel in (3, 9))
    if not small or not large:
        return not_run("k=3 and k=9 of `paper`")
    claimed = published.KERNEL[-1].accuracy - published.KERNEL[0].accuracy
    ours, (noise, source) = float(np.mean(large) - np.mean(small)), evidence.noise()
    noise *= 2**0.5  # of a difference of two gains
    n = min(len(small), len(large))
    word = SUPPORTED if abs(ours - claimed) <= 2 * noise else CONTRADICTED
    return Verdict(
        word, f"{signed(ours)} points (n={n}) against {signed(claimed)}; seeds alone: {noise:.2f} ({source})."
    )


def baseline_accuracy(evidence: Evidence) -> Verdict:
    ours = list(evidence.accuracy("paper", cells.baseline_setting(evidence.runs("paper"))).values())
    if not ours:
        return not_run("k=9, p=1 of `paper`")
    noise, source = evidence.noise()
    gap = float(np.mean(ours)) - published.BASELINE.accuracy
    word = SUPPORTED if abs(gap) <= 2 * noise else CONTRADICTED
    return Verdict(
        word, f"{np.mean(ours):.2f} % (n={len(ours)}), {signed(gap)} points; seeds alone: {noise:.2f} ({source})."
    )


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
        apart = np.percentile(large_turns, 75) < np.percentile(small_turns, 25)
        words_.append(NOT_RESOLVED if not apart else SUPPORTED if large < 0.9 * small else CONTRADICTED)
        speeds = ", ".join(f"{speed:.1f}" for speed, *_ in by_kernel)
        found.append(f"{records.machine_name(bench)}: {speeds}")
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
    found = {name: evidence.records("laptop", name) for name in accuracy}
    if len({records.machine_name(record) for each in found.values() for record in each}) > 1:
        return Verdict(NOT_RESOLVED, "Its runs are of several machines, whose speeds cannot be compared.")
    speed = {name: np.mean([record["images_per_second"] for record in each]) for name, each in found.items()}
    middle = accuracy["patch-2"]
    lead = {name: stats.paired(accuracy[name], middle) for name in others}
    faster = [name for name in others if speed[name] > speed["patch-2"]]
    slower = [name for name in others if name not in faster]
    said = [f"{points(lead[name])} over {name}, which is faster" for name in faster]
    if slower:
        most = max(-lead[name].mean for name in slower)
        cost = speed["patch-2"] / min(speed[name] for name in slower)
        said.append(f"the slower settings gain {signed(most)} points at most, for up to {cost:.1f} times the time")
    return Verdict(of_all([of_paired(lead[name]) for name in faster]), f"p=2: {'; '.join(said)}.")


def ranks_as_the_original(evidence: Evidence) -> Verdict:
    settings = {f"kernel-{kernel}": (kernel, 1) for kernel in published.KERNELS}
    settings |= {f"patch-{patch}": (9, patch) for patch in published.PATCHES[1:]}
    accuracy = {name: evidence.accuracy("laptop", name) for name in settings}
    if not all(accuracy.values()):
        return not_run("every setting of `laptop`")
    rising = sorted(settings, key=lambda name: published.original(*settings[name]).accuracy)
    pairs = list(itertools.combinations(rising, 2))
    words_ = [of_paired(stats.paired(accuracy[low], accuracy[high])) for low, high in pairs]
    against = [f"{low} above {high}" for (low, high), word in zip(pairs, words_, strict=True) if word == CONTRADICTED]
    named = f" ({'; '.join(against)})" if against else ""
    return Verdict(
        of_all(words_),
        f"Of {len(pairs)} pairs {words_.count(SUPPORTED)} are ordered as in the original, {len(against)} the other "
        f"way{named}, {words_.count(NOT_RESOLVED)} are not resolved.",
    )


def best_learning_rate(evidence: Evidence) -> Verdict:
    ends, n = {}, []
    for setting in ("lr-1e-4", "lr-1e-3", "lr-1e-2"):
        done = evidence.records("paper", setting)
        if not done:
            return not_run("the learning rates of `paper`")
        ends[setting] = float(np.mean([record["history"][-1]["val_acc"] for record in done]))
        n.append(len(done))
    lead = ends["lr-1e-3"] - max(value for name, value in ends.items() if name != "lr-1e-3")
    noise, source = evidence.noise(published.SWEEP_EPOCHS)
    text = ", ".join(f"{name[3:]}: {value:.2f} %" for name, value in ends.items())
    return Verdict(
        of_single(lead, noise),
        f"{text} on validation images (n={min(n)}); 1e-3 leads by {signed(lead)} points; seeds alone: {noise:.2f} "
        f"({source}).",
    )


def epochs_explain_the_gap(evidence: Evidence) -> Verdict:
    short, whole = (list(evidence.accuracy("original", setting).values()) for setting in ("cut-30", "patch-4"))
    if not short or not whole:
        return not_run("p=4 of `original`, whole and cut to 30 epochs")
    gap = published.original(9, 4).accuracy - published.printed("patch-4").accuracy
    gain, (noise, _) = float(np.mean(whole) - np.mean(short)), evidence.noise()
    return Verdict(
        of_single(gain - gap / 2, noise),
        f"At p=4 the original's recipe gains {signed(gain)} points from 30 to {published.ORIGINAL_EPOCHS} epochs "
        f"(n={min(len(short), len(whole))}), {gain / gap:.0%} of the gap of {gap:.2f}.",
    )


def selected_on_validation(evidence: Evidence) -> Verdict:
    gaps = [published.printed(name).accuracy - last.accuracy for name, last in published.LAST_EPOCH.items()]
    text = (
        f"Its notebooks have no validation split and print the best test accuracy of any epoch, {min(gaps):.2f} to "
        f"{max(gaps):.2f} points above the last epoch's."
    )
    done = evidence.records("as_run", "patch-4")
    if done:
        leak = stats.mean([max(e["test_acc"] for e in r["history"]) - r["last_test_acc"] for r in done])
        text += f" Ours, run as they were at p=4: {points(leak)}."
    return Verdict(CONTRADICTED, text)


def slightly_lower(evidence: Evidence) -> Verdict:
    gap, (noise, source) = published.original(9, 1).accuracy - published.BASELINE.accuracy, evidence.noise()
    word = SUPPORTED if gap <= 2 * noise else CONTRADICTED
    return Verdict(
        word,
        f"{gap:.2f} points, where seeds alone give a difference a deviation of {noise:.2f} ({source}).",
    )


def competitive_with_attention(evidence: Evidence) -> Verdict:
    convmixer, vit = (evidence.accuracy("laptop", setting) for setting in ("patch-4", "vit"))
    difference = stats.paired(vit, convmixer)
    if not difference.n:
        return not_run("`vit` and p=4 of `laptop`")
    return Verdict(of_paired(difference), f"ConvMixer over ViT at p=4: {points(difference)}.")


def ten_hours(evidence: Evidence) -> Verdict:
    row = published.COMPUTE["kernel"]
    each = row.hours / (row.epochs / published.EPOCHS)
    return Verdict(CONTRADICTED, f"Table V has {row.hours:.1f} hours for four configurations: {each:.1f} each.")


CLAIMS = (
    Claim("ConvMixer-256/8 with k=9, p=1 reaches 88.94 %", "Table I",
          "`paper`, k=9, p=1: within twice the seeds' deviation", baseline_accuracy),
    Claim("accuracy rises with k at every step", "abstract, IV-B",
          "`laptop`, paired seeds: each step's 95 % interval above zero", functools.partial(every_step, "kernel")),
    Claim("the step from k=3 to k=5 gains most", "IV-B",
          "`laptop`, paired seeds: it exceeds each other step by an interval above zero", first_step_gains_most),
    Claim("k=9 gains up to 3.29 points over k=3", "abstract, Table II",
          "`paper`: our gain within twice the seeds' deviation of theirs", size_of_the_kernel_gain),
    Claim("smaller patches are better at every step", "abstract, IV-C",
          "`laptop`, paired seeds: each step's 95 % interval above zero", functools.partial(every_step, "patch")),
    Claim("small patches cost computation and memory", "IV-C, V",
          "bench, PyTorch's defaults: p=1 slower and larger than p=4", cost_of_small_patches),
    Claim("throughput falls noticeably with k", "V",
          "bench, PyTorch's defaults: k=9 at most 0.9 times as fast as k=3, beyond both's quartiles", throughput_falls),
    Claim("parameters grow modestly with k", "II-A, V",
          "less than 1.5 times from k=3 to k=9", parameters_grow_modestly),
    Claim("p=2 is a reasonable compromise", "V",
          "`laptop`: no faster setting is as accurate, by paired intervals", compromise),
    Claim("the settings rank as in the original", "IV-D",
          "`laptop`, paired seeds: every pair resolved, in the original's order", ranks_as_the_original),
    Claim("0.001 is the best learning rate", "III-C, Fig. 2",
          "`paper`, k=7, p=4, validation: ahead by twice the seeds' deviation", best_learning_rate),
    Claim("too few epochs explain most of the gap", "IV-D",
          "`original` at p=4: 30 to 200 epochs gain more than half of the gap", epochs_explain_the_gap),
    Claim("the best checkpoint is chosen on validation", "III-C", "the paper's own notebooks", selected_on_validation),
    Claim("accuracy is slightly lower than the original's", "IV-D",
          "slightly: within twice the seeds' deviation", slightly_lower),
    Claim("convolutions compete with attention", "V, VI",
          "`laptop`, equal parameters, budget and seeds: ConvMixer's interval over a ViT above zero",
          competitive_with_attention),
    Claim("30 epochs took about ten hours a configuration", "IV-D", "its own Table V", ten_hours),
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
            "claim": claim.claim, "where": claim.where, "rule": claim.rule, "found": judged.found,
            "verdict": judged.word,
        })  # fmt: skip
    return pd.DataFrame(rows)


def tally(evidence: Evidence, study: studies.Study | None = None) -> list[str]:
    """How many claims came out how, in a sentence; nothing on the page of a study that is of other data."""
    if study and study.base.dataset != "cifar10":
        return []
    counts = ledger(evidence)["verdict"].value_counts()
    words_ = [f"{counts[word]} {word}" for word in (SUPPORTED, CONTRADICTED, NOT_RESOLVED, NOT_RUN) if word in counts]
    return [f"Of {len(CLAIMS)} claims of the paper, judged by all studies that are here: {', '.join(words_)}."]
