"""The bench end to end on a network of a moment, and its arithmetic by hand."""

import json
import os
import signal

import pytest

from lib import machine, records
from lib.native import layers
from lib.runs import bench

TINY = bench.Network("tiny", "smoke", 16, 1, 3, 4)


@pytest.fixture(scope="module")
def record() -> dict:
    variants = [bench.DEFAULT, "channels_last", "ours, bfloat16"]
    return bench.bench([TINY], variants, rounds=1, epoch_images=320, say=lambda line: None)


def test_macs_are_counted_as_by_the_model():
    from lib.model import ConvMixer, forward_macs

    for network in bench.all_networks().values():
        head = network.dim * 10
        model = ConvMixer(network.dim, network.depth, network.kernel, network.patch)
        assert sum(network.macs()) + head == forward_macs(model)


def test_bound_by_hand():
    """k=9, p=1, 256/8: 4.2 GFLOP an image, 1.0 of them depthwise."""
    network = bench.all_networks()["256/8 k=9 p=1"]
    depthwise, products = (6e-9 * macs for macs in network.macs())
    assert depthwise == pytest.approx(1.02, abs=0.01)
    assert products == pytest.approx(3.23, abs=0.01)
    found = bench.bounds(network, {"float32_gflops": 100.0, "bfloat16_gflops": 320.0})
    assert found["bound"] == pytest.approx(1 / (3.23 / 320 + 1.02 / 100), rel=0.01)
    assert found["bound_bf16"] == pytest.approx(320 / 4.25, rel=0.01)


def test_ratios_take_the_fastest_of_each_side():
    results = {
        bench.DEFAULT: {"images_per_second": 10.0, "peak_memory_mb": 400},
        "channels_last": {"images_per_second": 20.0, "peak_memory_mb": 400},
        "channels_last, bf16": {"failed": "not here"},
        "ours, float32": {"images_per_second": 50.0, "peak_memory_mb": 100},
        "ours, bfloat16": {"images_per_second": 80.0, "peak_memory_mb": 100},
    }
    found = bench.compare(results)
    assert (found["tuned"], found["ours"]) == ("channels_last", "ours, bfloat16")
    assert (found["over_tuned"], found["over_default"], found["memory_over_default"]) == (4.0, 8.0, 0.25)
    assert bench.compare({})["over_tuned"] is None


@pytest.mark.skipif(layers.compiled() is None, reason="no C compiler here")
def test_record_of_a_whole_bench(record, tmp_path):
    (line,) = record["networks"]
    assert set(line["variants"]) == {bench.DEFAULT, "channels_last", "ours, bfloat16"}
    for result in line["variants"].values():
        assert result["images_per_second"] > 0
        assert result["evaluation_images_per_second"] > 0
        assert result["peak_memory_mb"] >= 0
    assert line["ours"] == "ours, bfloat16"
    assert line["share_of_bound"] > 0
    assert record["limits"]["copy_gb_per_second"] > 0
    assert record["threads"] >= 1
    assert record["bfloat16_arithmetic"] == layers.bfloat16_arithmetic()
    (whole,) = record["epochs"]
    assert whole["images_per_second"] > 0 and whole["data_share"] < 1
    assert set(record["feeding"]) == {"0", str(machine.cores())} and min(record["feeding"].values()) > 0
    records.write_json(tmp_path / "bench.json", record)  # it can be written
    assert json.loads((tmp_path / "bench.json").read_text()) == record
    assert "ours over tuned" in bench.table(record)


def test_the_file_of_a_bench_is_named_after_the_processor():
    environment = {"cpu": "Intel(R) Xeon(R) @ 2.10GHz", "vectors": "AVX-512 with bfloat16"}
    assert bench.file_name({"environment": environment}) == "intel-r-xeon-r-2-10ghz-avx-512-with-bfloat16.json"


def test_unknown_network_is_named(capsys):
    with pytest.raises(SystemExit):
        bench.main(["--only", "256/8 k=9"])
    assert "256/8 k=9 p=1" in capsys.readouterr().err


def test_a_variant_that_cannot_win_has_no_more_turns():
    turns = {(name, "train"): [seconds] for name, seconds in zip(bench.TUNED, (1.0, 5.0, 1.2, 1.7), strict=True)}
    turns |= {(bench.DEFAULT, "train"): [9.0], ("ours, float32", "train"): [0.1]}
    assert [name for name, _ in turns if bench.hopeless(name, turns)] == [
        "channels_last, bf16",
        "channels_last, bf16, compiled",
    ]


def dies_in_defaults(pipe, network, variant):
    """In the place of `serve`: a variant that the system kills at its first turn, and one that lives."""
    pipe.send({"first_step_seconds": 1.0, "peak_memory_mb": 100})
    for _ in bench.orders(pipe):
        if variant == bench.DEFAULT:
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.send(0.5)


def test_a_variant_that_is_killed_is_a_failed_one(monkeypatch):
    monkeypatch.setattr(bench, "serve", dies_in_defaults)
    monkeypatch.setattr(bench, "ask", lambda pipe, word: {} if pipe is None else pipe.send(word) or pipe.recv())
    line = bench.measure(TINY, [bench.DEFAULT, "ours, float32"], 2, None, [])
    assert "want of memory" in line["variants"][bench.DEFAULT]["failed"]
    assert line["variants"]["ours, float32"]["turns"] == [2.0, 2.0]
    assert line["over_default"] is None
