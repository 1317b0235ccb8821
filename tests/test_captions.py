"""What a caption says of the runs behind a table or a figure, word by word."""

import made
from lib import records
from lib.report import captions, cells, claims, cost, figures, front, learned, tables


def test_network_budget_and_n(home):
    runs = made.runs(made.study(seeds=range(3)))
    said = captions.basis(tables.kernel, cells.ablation_runs(runs, "kernel"))
    assert said == "ConvMixer-64/4, 12 epochs of 45,000 images, n=3 seeds a setting."
    assert captions.basis(figures.baseline, cells.of_setting(runs, "kernel-9")).endswith(" n=3 seeds.")


def test_what_shows_times_names_the_machine(home):
    runs = made.runs(made.study())
    where = " n=1 seed a setting, on Made-Up Processor <1> (2 threads)."
    for make in (tables.compute, tables.compute_by_setting, tables.every_run, cost.accuracy_against_cost):
        assert captions.basis(make, runs).endswith(where)
    bench = made.bench(default=3)
    for make in (tables.speed, figures.speed):
        assert captions.basis(make, bench) == ""  # its title says so


def test_the_table_of_all_studies_names_all_machines(home):
    one, other = made.study("one"), made.study("other")
    made.fill(one)
    made.fill(other)
    record = made.record(other.runs[0])
    made.write(other, other.runs[0], record | {"environment": record["environment"] | {"gpu": "Made-Up GPU"}})
    said = captions.basis(front.overview, claims.Evidence())
    assert said == "Times are of Made-Up GPU and Made-Up Processor <1> (2 threads)."


def test_runs_that_differ_are_all_named(home):
    study = made.study(seeds=range(2), settings=["patch-4", "lr-1e-3", "cnn"], train_size=900, val_size=100)
    runs = made.runs(study, skip={study.runs_of("patch-4")[1].name})
    said = captions.basis(tables.every_run, runs)
    assert said.startswith("ConvMixer-64/4 or three-layer CNN, 12 or 10 epochs of 900 images, n=1 to 2 seeds a setting")


def test_single_networks_say_so(home):
    found = learned.networks(made.runs(made.study(seeds=(4, 5))), "kernel")
    said = captions.basis(learned.kernels, found)
    assert said == "ConvMixer-64/4, 12 epochs of 45,000 images, n=1 network each, seed 4."


def test_without_runs_nothing_is_claimed(home):
    study = made.study()
    assert captions.basis(figures.kernel, records.load(study)) == "No run of ours is finished."
    assert captions.basis(tables.overrides, study) == captions.basis(claims.ledger, claims.Evidence()) == ""
