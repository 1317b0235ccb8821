"""How fast training is on this processor, against plain PyTorch: python -m lib.runs.bench [--quick] [--only NAME].

For each network every variant lives in a process of its own, and the processes take turns, one training step (or a
quarter of a second of them) at a time: whatever else the machine does in the meantime falls on all of them alike. A
step is forward, loss, backward and AdamW on a batch of 64. Reported are medians of the turns. The machine's limits
(matrix products, memory copy) are measured in the same rounds. Writes a file of reports/bench/ that is named after the
processor, so that another one's stands beside it.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import re
import signal
import statistics
import sys
import tempfile
import time
import timeit
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from lib import machine, records, study

BATCH = 64  # images a training step
TEST_BATCH = 100  # images a step of evaluation
TURN = 0.25  # seconds that a turn takes at least
HOPELESS = 0.6  # of PyTorch's variants, one with less than this share of the best one's speed has two turns and no more


@dataclasses.dataclass(frozen=True)
class Network:
    """One line of the table."""

    name: str
    study: str  # whose network, and whose recipe an epoch of it has
    dim: int
    depth: int
    kernel: int
    patch: int

    def macs(self) -> tuple[float, float]:
        """Multiply-accumulates of one image forward: in the depthwise convolutions, and in the matrix products."""
        places = (32 // self.patch) ** 2
        depthwise = self.depth * places * self.kernel**2 * self.dim
        products = self.depth * places * self.dim**2 + places * 3 * self.patch**2 * self.dim
        return depthwise, products


def all_networks() -> dict[str, Network]:
    """All lines of the table by name: the paper's ablations, and the ends of those of the small studies."""
    asked = [("paper", kernel, 1) for kernel in (3, 5, 7, 9)] + [("paper", 9, patch) for patch in (2, 4)]
    asked += [(name, 9, patch) for name in ("laptop", "quick") for patch in (1, 4)]
    lines = []
    for name, kernel, patch in asked:
        base = study.base_params(name)
        width = f"{base.dim}/{base.depth}" if name == "paper" else f"{name} {base.dim}/{base.depth}"
        lines.append(Network(f"{width} k={kernel} p={patch}", name, base.dim, base.depth, kernel, patch))
    return {line.name: line for line in lines}


DEFAULT = "PyTorch, defaults"
TUNED = {  # channels_last, each; autocast to bfloat16, torch.compile
    "channels_last": (False, False),
    "channels_last, bf16": (True, False),
    "channels_last, compiled": (False, True),
    "channels_last, bf16, compiled": (True, True),
}
LONG_SPIN = {"GOMP_SPINCOUNT": "300000"}  # libgomp's default, for PyTorch's own variants; see lib/__init__.py
OURS = {"ours, float32": "float32", "ours, bfloat16": "bfloat16"}


# ---------------------------------------------------------------------------------------------- in a variant's process


def serve(pipe: Connection, network: Network, variant: str) -> None:
    """Sends what it took to start, then answers each word on the pipe ("train", "evaluate") with seconds an image."""
    import torch
    from torch.nn import functional as F

    from lib.model import ConvMixer
    from lib.native import layers
    from lib.train import has_bfloat16

    autocast, compiled = TUNED.get(variant, (False, False))
    if autocast and not has_bfloat16(torch.device("cpu")):
        pipe.send({"failed": "PyTorch has no bfloat16 convolutions for this processor, its fallback is far slower"})
        return
    torch.manual_seed(0)
    # What PyTorch loads at its first step is not the network's memory.
    ConvMixer(8, 1, 3, 4)(torch.randn(2, 3, 32, 32)).sum().backward()
    size_before, begun = machine.peak_memory(), time.perf_counter()
    layout = torch.contiguous_format if variant == DEFAULT else torch.channels_last
    model = ConvMixer(network.dim, network.depth, network.kernel, network.patch).to(memory_format=layout)
    if variant in OURS:
        layers.keep_memory()
        reason = layers.accelerate(model, getattr(torch, OURS[variant]))
        if reason is not None:
            pipe.send({"failed": reason})
            return
    optimizer = torch.optim.AdamW(model.parameters(), fused=variant != DEFAULT)
    network_of = torch.compile(model) if compiled else model
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=layout)
    test_images = torch.randn(TEST_BATCH, 3, 32, 32).to(memory_format=layout)
    labels = torch.randint(10, (BATCH,))

    def train() -> int:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = network_of(images)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        return BATCH

    @torch.inference_mode()
    def evaluate() -> int:
        model.eval()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            network_of(test_images)
        model.train()
        return TEST_BATCH

    def turn(work) -> float:
        begun, done = time.perf_counter(), 0
        while (passed := time.perf_counter() - begun) < TURN or not done:
            done += work()
        return passed / done

    try:
        train()
    except Exception as error:  # torch.compile without a compiler, a bfloat16 operation that is not there
        pipe.send({"failed": str(error).strip().splitlines()[0][:200]})
        return
    first = time.perf_counter() - begun
    train()
    pipe.send({"first_step_seconds": round(first, 2), "peak_memory_mb": round(machine.peak_memory() - size_before)})
    warm = False
    for word in orders(pipe):
        if word == "evaluate" and not warm:
            evaluate()  # compiles, where it does
            warm = True
        pipe.send(turn(train if word == "train" else evaluate))


def limits(pipe: Connection) -> None:
    """Sends what holds for the whole bench, then answers "measure" with the speeds of this moment: GFLOP/s of matrix
    products, GB/s of a copy."""
    import torch

    from lib.native import layers
    from lib.train import has_bfloat16

    # Without bfloat16 in hardware PyTorch's product takes seconds at 1024, and is no faster at a larger size.
    sizes = {"float32": 2048, "bfloat16": 2048 if has_bfloat16(torch.device("cpu")) else 256}
    matrices = {kind: torch.randn(n, n).to(getattr(torch, kind)) for kind, n in sizes.items()}
    source = torch.ones(64 * 2**20)  # 256 MiB
    target = torch.empty_like(source)

    def best(work) -> float:
        return min(timeit.repeat(work, number=1, repeat=5))

    def measure() -> dict[str, float]:
        speeds = {
            f"{kind}_gflops": 2e-9 * len(m) ** 3 / best(lambda m=m: torch.mm(m, m)) for kind, m in matrices.items()
        }
        # Both what is read and what is written is counted.
        return {**speeds, "copy_gb_per_second": 2e-9 * source.nbytes / best(lambda: target.copy_(source))}

    measure()
    pipe.send({"threads": torch.get_num_threads(), "bfloat16_arithmetic": layers.bfloat16_arithmetic()})
    for _ in orders(pipe):
        pipe.send(measure())


def epoch(pipe: Connection, network: Network, images: int) -> None:
    """Answers "measure" with images a second of a whole epoch, and of the same steps on one batch that lies ready.

    The epoch is that of `fit` with the recipe and the type of the network's study: augmentation, mixing, data loading
    and the look at the loss. `images`: a multiple of 10, as many of each class.
    """
    import torch

    from lib import train

    data = noise(images)
    p = study.base_params(network.study).replace(
        kernel=network.kernel, patch=network.patch, epochs=1, train_size=0, val_size=0, select="last", device="cpu"
    )

    def whole() -> float:
        with tempfile.TemporaryDirectory() as folder:
            return train.fit(p, data, Path(folder), say=lambda line: None).state.history[0]["images_per_second"]

    def bare() -> float:
        model, forward, _ = train.build(p, torch.device("cpu"))
        optimizer, scaler = train.make_optimizer(p, model), torch.amp.GradScaler("cpu", enabled=False)
        x = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
        targets = torch.full((BATCH, 10), 0.1)
        begun = time.perf_counter()
        for _ in range(images // BATCH):
            train.train_step(p, forward, model, optimizer, scaler, x, targets)
        return images // BATCH * BATCH / (time.perf_counter() - begun)

    whole()  # warms up
    pipe.send("ready")
    for _ in orders(pipe):
        pipe.send({"images_per_second": whole(), "steps_images_per_second": bare()})


def feed(pipe: Connection, images: int) -> None:
    """Answers "measure" with images a second that the data path alone delivers, by the number of its workers.

    It is the paper's augmentation; the mixing is done on the device. A GPU that trains faster waits for images.
    """
    from lib.data import draws, loader
    from lib.data.augment import Augment

    # This process was spawned, and its data workers would be too; in training they start as the system has it.
    multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
    data, p = noise(images), study.base_params("paper")
    augment = Augment(data.train_images, p, *data.normalisation)

    def rate(workers: int) -> float:
        plan, order = augment.plan(0), draws.order(p.seed, 0, images)
        begun = time.perf_counter()
        for _ in loader.batches(augment, data.train_labels, plan, order, p.batch_size, workers=workers):
            pass
        return images / (time.perf_counter() - begun)

    rate(0)  # warms up
    pipe.send("ready")
    for _ in orders(pipe):
        pipe.send({str(workers): rate(workers) for workers in (0, machine.cores())})


def noise(images: int):
    """A data set of as many training images, a multiple of 10, and 100 test images, all of them noise."""
    import numpy as np

    from lib.data.datasets import Dataset

    random = np.random.default_rng(0)
    train, test = (random.integers(0, 256, (n, 32, 32, 3), np.uint8) for n in (images, 100))
    return Dataset(train, np.arange(images, dtype=np.int64) % 10, test, np.arange(100) % 10)


def orders(pipe: Connection) -> Iterator[str]:
    """What is asked on the pipe, until "stop" or until nobody is there to ask."""
    with contextlib.suppress(EOFError, ConnectionResetError):
        while (word := pipe.recv()) != "stop":
            yield word


# ------------------------------------------------------------------------------------------------ in the main process


@contextlib.contextmanager
def process(target, *arguments, **variables: str) -> Iterator[Connection]:
    """A fresh process that runs `target(pipe, *arguments)` with more environment variables; this end of its pipe."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    child = context.Process(target=alone, args=(target, there, variables, *arguments))
    child.start()
    there.close()
    try:
        yield here
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            here.send("stop")
        child.join(20)
    finally:
        child.kill()


def alone(target, pipe: Connection, variables: dict[str, str], *arguments) -> None:
    """In the fresh process: Ctrl-C is for the main process, which ends this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ.update(variables)  # torch is not loaded yet
    machine.use_cores()
    target(pipe, *arguments)


def in_float32(results: dict[str, dict]) -> dict[str, dict]:
    """Those of a network's variants that work in float32."""
    bfloat16 = {name for name, (autocast, _) in TUNED.items() if autocast}
    bfloat16 |= {name for name, dtype in OURS.items() if dtype == "bfloat16"}
    return {name: result for name, result in results.items() if name not in bfloat16}


def ask(pipe: Connection, word: str):
    pipe.send(word)
    return pipe.recv()


def measure(network: Network, variants: list[str], rounds: int, limits_pipe: Connection, speeds: list[dict]) -> dict:
    """The record of one network: each variant's turns, and their ratios."""
    with contextlib.ExitStack() as stack:
        results = {variant: {} for variant in variants}
        turns = {(variant, word): [] for variant in variants for word in ("train", "evaluate")}
        pipes = {}

        @contextlib.contextmanager
        def survived(variant: str) -> Iterator[None]:
            try:
                yield
            except (EOFError, ConnectionError):  # all variants are in memory at once, and the system may kill one
                results[variant] = {"failed": "its process ended, perhaps for want of memory"}

        for variant in variants:
            variables = {} if variant in OURS else LONG_SPIN
            pipes[variant] = stack.enter_context(process(serve, network, variant, **variables))
            with survived(variant):
                results[variant] = pipes[variant].recv()
        for number in range(rounds):
            speeds.append(ask(limits_pipe, "measure"))
            for variant, pipe in pipes.items():
                if "failed" in results[variant] or (number > 1 and hopeless(variant, turns)):
                    continue
                with survived(variant):
                    turns[variant, "train"].append(ask(pipe, "train"))
                    if number < 2:
                        turns[variant, "evaluate"].append(ask(pipe, "evaluate"))
    for variant, result in results.items():
        if "failed" in result:
            continue
        train, evaluate = turns[variant, "train"], turns[variant, "evaluate"]
        result |= {
            "images_per_second": round(1 / statistics.median(train), 2),
            "fastest_images_per_second": round(1 / min(train), 2),
            "evaluation_images_per_second": round(1 / statistics.median(evaluate), 2),
            "turns": [round(1 / seconds, 2) for seconds in train],  # images a second, in order
        }
    alike = compare(in_float32(results))
    float32 = {f"float32_{name}": alike[name] for name in ("over_tuned", "over_default")}
    return {**dataclasses.asdict(network), "batch": BATCH, "variants": results, **compare(results), **float32}


def hopeless(variant: str, turns: dict[tuple[str, str], list[float]]) -> bool:
    """Whether a variant is one of PyTorch's that cannot become the fastest of them: its turns would be time lost."""
    best = {name: min(turns[name, "train"]) for name in TUNED if turns.get((name, "train"))}
    return variant in best and min(best.values()) < HOPELESS * best[variant]


def compare(results: dict[str, dict]) -> dict:
    """Which variant of PyTorch's and of ours is the fastest, and ours over theirs."""

    def fastest(names) -> str | None:
        there = [name for name in names if "images_per_second" in results.get(name, {})]
        return max(there, key=lambda name: results[name]["images_per_second"], default=None)

    tuned, ours = fastest(TUNED), fastest(OURS)
    ratios = {"tuned": tuned, "ours": ours, "over_tuned": None, "over_default": None, "memory_over_default": None}
    for name, other in (("over_tuned", tuned), ("over_default", fastest([DEFAULT]))):
        if ours and other:
            ratios[name] = round(results[ours]["images_per_second"] / results[other]["images_per_second"], 2)
    if ours and fastest([DEFAULT]) and results[DEFAULT]["peak_memory_mb"]:
        ratios["memory_over_default"] = round(results[ours]["peak_memory_mb"] / results[DEFAULT]["peak_memory_mb"], 3)
    return ratios


def bounds(network: Network, speeds: dict) -> dict:
    """Images a second if there were nothing but the arithmetic of forward and backward, at the measured speeds.

    `bound`: matrix products at the better of the two product speeds, depthwise convolutions at the float32 one.
    `bound_bf16`: all of it at the better one, as where the depthwise convolutions have bfloat16 dot products too.
    """
    fast = max(speeds["float32_gflops"], speeds["bfloat16_gflops"])
    # Forward, input gradient, weight gradient; two operations a multiply-accumulate.
    depthwise, products = (6e-9 * macs for macs in network.macs())
    return {
        "bound": round(1 / (products / fast + depthwise / speeds["float32_gflops"]), 1),
        "bound_bf16": round(1 / ((products + depthwise) / fast), 1),
    }


def bench(networks: list[Network], variants: list[str], rounds: int, epoch_images: int, say=print) -> dict:
    """The whole record, see the module's docstring."""
    load, started = os.getloadavg(), time.perf_counter()
    speeds, lines, epochs = [], [], []
    with process(limits) as machine_pipe:
        settings = machine_pipe.recv()
        for network in networks:
            say(f"{network.name}: {len(variants)} variants")
            lines.append(measure(network, variants, rounds, machine_pipe, speeds))
    limit = {name: round(statistics.median(s[name] for s in speeds), 1) for name in speeds[0]}
    for network, line in zip(networks, lines, strict=True):
        line |= bounds(network, limit)
        own = line["variants"].get(line["ours"], {}).get("images_per_second")
        line["share_of_bound"] = round(own / line["bound"], 3) if own else None
        line["share_of_bound_bf16"] = round(own / line["bound_bf16"], 3) if own else None
        if network.patch == 4 and epoch_images:
            say(f"{network.name}: an epoch with augmentation")
            with process(epoch, network, epoch_images) as pipe:
                pipe.recv()
                turns = [ask(pipe, "measure") for _ in range(rounds)]
            medians = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
            # Each turn's own ratio: its epoch and its steps came one after the other.
            share = statistics.median(1 - t["images_per_second"] / t["steps_images_per_second"] for t in turns)
            rates = {name: round(rate, 1) for name, rate in medians.items()}
            epochs.append({"name": network.name, "images": epoch_images, **rates, "data_share": round(share, 3)})
    feeding = {}
    if epoch_images:
        say("the data path alone")
        with process(feed, 2 * epoch_images) as pipe:
            pipe.recv()
            turns = [ask(pipe, "measure") for _ in range(rounds)]
        feeding = {workers: round(statistics.median(turn[workers] for turn in turns)) for workers in turns[0]}
    return {
        "schema": records.BENCH_SCHEMA,
        "made": records.now(),
        "seconds": round(time.perf_counter() - started),
        "environment": machine.environment(),
        **settings,
        "load_average": {"before": load[0], "after": os.getloadavg()[0]},
        "batch": BATCH,
        "limits": limit,
        "networks": lines,
        "epochs": epochs,
        "feeding": feeding,  # images a second of the data path, by workers
    }


def file_name(record: dict) -> str:
    """amd-epyc-avx2.json: the same for the same kind of processor."""
    words = f"{record['environment']['cpu']} {record['environment']['vectors']}".lower()
    return "-".join(re.findall(r"[a-z0-9]+", words)) + ".json"


def table(record: dict) -> str:
    """The record as text: images a second in training, peak memory, ratios."""
    limit = record["limits"]
    out = [
        f"{records.machine_name(record)}; matrix products "
        f"{limit['float32_gflops']:.0f} (float32) and {limit['bfloat16_gflops']:.0f} GFLOP/s (bfloat16), "
        f"copy {limit['copy_gb_per_second']:.0f} GB/s; "
        f"load {record['load_average']['before']:.1f} before, {record['load_average']['after']:.1f} after",
        "Images a second in training, batch 64 (in brackets: in evaluation; MB above an idle process)",
    ]
    for line in record["networks"]:
        out.append(f"\n{line['name']}")
        for variant, result in line["variants"].items():
            if "failed" in result:
                out.append(f"  {variant:30} -  {result['failed']}")
                continue
            mark = "*" if variant in (line["tuned"], line["ours"]) else " "
            out.append(
                f" {mark}{variant:30}{result['images_per_second']:9.1f}  "
                f"({result['evaluation_images_per_second']:.0f}; {result['peak_memory_mb']} MB)"
            )
        if line["ours"]:
            out.append(
                f"  ours over tuned {line['over_tuned']}, over default {line['over_default']}; memory "
                f"{line['memory_over_default']} of default's; {line['share_of_bound']:.0%} of the counted bound "
                f"({line['bound']}), {line['share_of_bound_bf16']:.0%} of one all in bfloat16 ({line['bound_bf16']})"
            )
    for line in record["epochs"]:
        out.append(
            f"\n{line['name']}: {line['images_per_second']:.0f} images/s in an epoch with augmentation, "
            f"{line['steps_images_per_second']:.0f} in its steps alone: {line['data_share']:.1%} of it is the data path"
        )
    for workers, rate in record["feeding"].items():
        out.append(f"The data path alone, {workers} workers: {rate:,} images/s")
    return "\n".join(out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m lib.runs.bench", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one small network, nothing compiled: a minute")
    parser.add_argument("--only", action="append", metavar="NAME", help="a network of the table (more than once: each)")
    parser.add_argument("--rounds", type=int, help="turns of each variant (default 7, quick 3)")
    options = parser.parse_args(arguments)
    lines = all_networks()
    small = [name for name, line in lines.items() if name.startswith("laptop") and line.patch == 4]
    wanted = options.only or (small if options.quick else list(lines))
    if unknown := set(wanted) - set(lines):
        parser.error(f"no network {', '.join(map(repr, sorted(unknown)))}; there are {', '.join(map(repr, lines))}")
    tuned = (name for name, (_, compiled) in TUNED.items() if not (compiled and options.quick))
    variants = [DEFAULT, *tuned, *OURS]
    rounds = options.rounds or (3 if options.quick else 7)
    asked = [line for name, line in lines.items() if name in wanted]
    try:
        record = bench(asked, variants, rounds, epoch_images=640 if options.quick else 6400)
    except KeyboardInterrupt:
        sys.exit("stopped: nothing is recorded")
    except (EOFError, ConnectionError):
        sys.exit("a measuring process ended, perhaps for want of memory: nothing is recorded; --only does with less")
    whole = len(asked) == len(lines)
    out = records.REPORTS / (f"{records.BENCH}/{file_name(record)}" if whole else "bench-of-a-part.json")
    print(table(record))
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        records.write_json(out, record)
    except OSError as error:
        sys.exit(f"{out}: {error.strerror}; nothing is recorded")
    print(f"\nwritten to {study.shown(out)}")


if __name__ == "__main__":
    main()
