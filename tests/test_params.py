"""Parameters: what is refused and in which words, what the fingerprint covers, how runs are named."""

import dataclasses
import inspect
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lib.params import (
    ADDED,
    LABELS,
    NUMERICS,
    TYPES,
    UNUSED,
    ParameterError,
    Params,
    differences,
    run_name,
)
from lib.study import ROOT

REFUSED = [
    ({"kernel": "abc"}, "kernel='abc': give a whole number"),
    ({"kernel": 0}, "kernel=0: give 1 or more"),
    ({"kernel": -3}, "kernel=-3: give 1 or more"),
    ({"kernel": 9.5}, "kernel=9.5: give a whole number"),
    ({"kernel": True}, "kernel=True: give a whole number"),
    ({"patch": 3}, "patch=3: an image of 32 x 32 needs one of 1, 2, 4, 8, 16, 32"),
    ({"patch": 64}, "patch=64: an image of 32 x 32 needs one of"),
    ({"kernal": 7}, "kernal: unknown parameter, did you mean kernel?"),
    ({"learning_rate": 7}, "learning_rate: unknown parameter"),
    ({"lr": "fast"}, "lr='fast': give a number, such as 0.001"),
    ({"lr": float("nan")}, "lr=nan: give a finite number"),
    ({"lr": float("inf")}, "lr=inf: give a finite number"),
    ({"lr": -0.1}, "lr=-0.1: give more than 0"),
    ({"weight_decay": float("nan")}, "weight_decay=nan: give a finite number"),
    ({"weight_decay": -1}, "weight_decay=-1.0: give 0 or more"),
    ({"epochs": 0}, "epochs=0: give 1 or more"),
    ({"batch_size": 0}, "batch_size=0: give 1 or more"),
    ({"batch_size": 50_000}, "batch_size=50000: there are only 45000 training images"),
    ({"batch_size": 64, "train_size": 10}, "batch_size=64: there are only 10 training images"),
    ({"patch": 32, "train_size": 513}, "batch_size=64: 513 training images in batches of 64 leave one alone"),
    ({"patch": 32, "val_size": 4990, "batch_size": 15_003}, "batch_size=15003: 45010 training images in batches of"),
    ({"patch": 32, "batch_size": 1}, "batch_size=1: at patch=32 BatchNorm needs 2 images or more"),
    ({"patch": 32, "batch_size": 1, "train_size": 1}, "batch_size=1: at patch=32 BatchNorm needs 2 images or more"),
    ({"train_size": 46_000}, "train_size=46000: 45000 training images are left"),
    ({"val_size": 5005}, "val_size=5005: give a multiple of 10"),
    ({"val_size": 50, "dataset": "cifar100"}, "val_size=50: give a multiple of 100"),
    ({"dataset": "cifar-100"}, "dataset=cifar-100: give cifar10, cifar100 or folder:PATH, did you mean cifar100?"),
    ({"dataset": "CIFAR10"}, "dataset=CIFAR10: give cifar10, cifar100 or folder:PATH, did you mean cifar10?"),
    ({"dataset": "data/pets"}, "did you mean folder:data/pets?"),
    ({"dataset": "Folder:data/pets"}, "did you mean folder:data/pets?"),
    ({"dataset": "FOLDER:pets"}, "did you mean folder:pets?"),
    ({"dataset": "folder:"}, "dataset=folder:: give cifar10, cifar100 or folder:PATH"),
    ({"dataset": "mnist"}, "dataset=mnist: give cifar10, cifar100 or folder:PATH"),
    ({"dataset": "folder:a\nb"}, "give cifar10, cifar100 or folder:PATH"),
    ({"datset": "cifar100"}, "datset: unknown parameter, did you mean dataset?"),
    ({"val_size": 0}, "select=best_val: best_val needs val_size above 0"),
    ({"arch": "resnet"}, "arch=resnet: give one of convmixer, vit, cnn"),
    ({"arch": "vit", "dim": 40}, "dim=40: a vit has heads of 16 channels"),
    ({"flip": "maybe"}, "flip='maybe': give True or False"),
    ({"randaugment": "../x"}, "randaugment=../x: give none, torchvision-OPS-MAGNITUDE"),
    ({"schedule": "step"}, "schedule=step: give one of constant, cosine"),
    ({"study": "../x"}, "study=../x: give letters"),
    ({"study": "a/b"}, "study=a/b: give letters"),
    ({"study": ""}, "study=: give letters"),
    ({"study": "published"}, "study=published: reports/published is the project's own, give another name"),
    ({"study": "Bench"}, "study=Bench: reports/Bench is the project's own, give another name"),
    ({"setting": ".."}, "setting=..: give letters"),
    ({"dtype": "float16", "device": "cpu"}, "dtype=float16: float16 needs device=cuda"),
    ({"device": "gpu"}, "device=gpu: give one of auto, cpu, cuda, cuda:0, mps"),
    ({"device": "cuda:"}, "device=cuda:: give one of auto"),
    ({"device": "cuda:-1"}, "device=cuda:-1: give one of auto"),
    ({"device": "cuda:1\n"}, "give one of auto"),
    ({"device": "mps:0"}, "device=mps:0: give one of auto"),
    ({"kernel": 64}, "kernel=64: larger than any image needs, give 1 to 63"),
    ({"dim": 0}, "dim=0: give 1 or more"),
    ({"depth": 0}, "depth=0: give 1 or more"),
    ({"test_batch_size": 0}, "test_batch_size=0: give 1 or more"),
    ({"lr": 0}, "lr=0.0: give more than 0"),
    ({"lr": True}, "lr=True: give a number"),
    ({"eps": 0}, "eps=0.0: give more than 0"),
    ({"checkpoint_minutes": 0}, "checkpoint_minutes=0.0: give more than 0"),
    *(({name: -0.5}, f"{name}=-0.5: give 0 or more") for name in ("clip", "jitter", "mixup", "cutmix")),
    *(({name: -1}, f"{name}=-1: give 0 or more") for name in ("train_size", "val_size", "workers", "seed")),
    *(
        ({name: share}, f"{name}={share}: give a share between 0 and 1")
        for name in ("erasing", "mix_prob", "label_smoothing")
        for share in (-0.1, 1.1)
    ),
    ({"label_smoothing": 1}, "label_smoothing=1.0: give less than 1"),
    ({"crop_scale": 0}, "crop_scale=0.0: give a share above 0, up to 1"),
    ({"crop_scale": 1.1}, "crop_scale=1.1: give a share above 0, up to 1"),
    ({"crop_ratio": 0.9}, "crop_ratio=0.9: give 1 or more"),
    ({"seed": 2**32}, f"seed={2**32}: give less than {2**32}"),
    ({"seed": "1" + "0" * 5000}, "give a whole number"),
    ({"study": "a..b"}, "study=a..b: give letters"),
    ({"study": "a" * 65}, "give letters"),
    ({"dtype": "float16", "device": "mps"}, "dtype=float16: float16 needs device=cuda"),
]


@pytest.mark.parametrize("values, words", REFUSED)
def test_what_cannot_be_is_refused_in_one_line_that_names_it(values, words):
    with pytest.raises(ParameterError) as refusal:
        Params.of(**values)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_one_of_several_gpus_can_be_named():
    assert [Params(device=f"cuda:{n}", dtype="float16").device for n in (0, 12)] == ["cuda:0", "cuda:12"]


def test_text_that_can_only_mean_one_thing_is_converted():
    params = Params.of(lr="1e-3", kernel="7", flip="false")
    assert (params.lr, params.kernel, params.flip) == (1e-3, 7, False)


def test_numbers_of_numpy_and_of_a_data_frame_are_numbers():
    values = {"kernel": 7, "lr": 0.5, "flip": False, "schedule": "constant"}
    plain = Params(**values)
    row = pd.DataFrame([values]).iloc[0]
    for theirs in (row.to_dict(), {"kernel": np.int64(7), "lr": np.float32(0.5), "flip": np.False_}):
        params = Params(**{**values, **theirs})
        assert params == plain and params.fingerprint == plain.fingerprint
        assert [type(getattr(params, name)) for name in ("kernel", "lr", "flip")] == [int, float, bool]
    assert type(Params(lr=np.int64(1)).lr) is float


@pytest.mark.parametrize(
    "values",
    [{"kernel": np.float64(7)}, {"kernel": 7.0}, {"kernel": np.True_}, {"lr": True}, {"lr": np.True_}, {"flip": 1}],
    ids=repr,
)
def test_a_number_of_another_kind_is_refused(values):
    with pytest.raises(ParameterError, match=r"^\w+=\S+: give (a|True)"):
        Params(**values)


def test_the_defaults_are_the_study_as_written():
    p = Params()
    assert (p.dim, p.depth, p.kernel, p.patch) == (256, 8, 9, 1)
    assert (p.epochs, p.batch_size, p.test_batch_size) == (30, 64, 100)
    assert (p.lr, p.weight_decay, p.schedule, p.select) == (0.001, 0.01, "cosine", "best_val")
    assert p.flip and p.crop == "pad" and p.randaugment != "none" and p.erasing and p.mixup and p.cutmix


def notebook_cell() -> str:
    """What the `parameters` cell has to be, taken from the class."""
    lines = [line.strip() for line in inspect.getsource(Params).splitlines()]
    first = next(i for i, line in enumerate(lines) if line.startswith("# "))
    last = max(i for i, line in enumerate(lines) if re.match(r"\w+: \w+ = ", line))
    return "\n".join(lines[first : last + 1])


def test_the_notebook_offers_exactly_these_parameters():
    notebook = nbformat.read(ROOT / "notebooks" / "train.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    assert [cell.source for cell in cells] == [notebook_cell()]
    namespace = {}
    exec(cells[0].source, namespace)
    assert Params.of_notebook(namespace) == Params()


def test_a_notebook_may_hold_whatever_its_parameters_cells_have_not_set():
    """Jupyter keeps in `In` what was run; the rest is of later cells, of PYTHONSTARTUP, of papermill."""
    namespace = {"kernel": 7, "original_ps1": ">>> ", "best": 90.1, "np": dataclasses, "PAPERMILL_INPUT_PATH": "x"}
    cells = ["", notebook_cell(), "# Parameters\nkernel = 7\nseeds = [0]\nPAPERMILL_INPUT_PATH = 'x'\n"]
    cells += ["epochs = 5\nnote = 'mine'", "%matplotlib", "best = 90.1", "shown[0] = a.b = 1"]
    assert Params.of_notebook({**namespace, "In": cells}) == Params(kernel=7)


@pytest.mark.parametrize(
    "cell", [f"{notebook_cell()}\nkernal = 7", "# Parameters\nkernal = 7\n", "lr = seed = kernal = 1"]
)
def test_a_misspelt_name_in_a_parameters_cell_is_refused_until_the_cell_is_mended(cell):
    with pytest.raises(ParameterError, match=r"kernal: unknown parameter, did you mean kernel\?"):
        Params.of_notebook({"kernel": 7, "In": ["", notebook_cell(), cell, "print(kernal)"]})
    mended = cell.replace("kernal", "kernel")
    assert Params.of_notebook({"kernel": 7, "In": ["", cell, mended]}) == Params(kernel=7)


OTHER = {
    "arch": "cnn", "std": "images", "dataset": "cifar100",
    "kernel": 3, "patch": 4, "dim": 64, "depth": 4, "epochs": 10, "batch_size": 32, "lr": 0.1, "schedule": "constant",
    "weight_decay": 0.5, "decay_1d": False, "eps": 1e-3, "clip": 1.0, "crop": "none", "crop_scale": 0.5,
    "crop_ratio": 1.0, "flip": False, "randaugment": "none", "jitter": 0.1, "erasing": 0.5, "erasing_mode": "pixel",
    "mixup": 0.0, "cutmix": 0.0, "mix_prob": 0.5, "label_smoothing": 0.1, "train_size": 500, "val_size": 100,
    "select": "last", "seed": 1, "dtype": "bfloat16", "test_batch_size": 10, "device": "cpu", "native": False,
    "compile": True, "workers": 2, "checkpoint_minutes": 1.0, "data_dir": "x", "study": "x", "setting": "x",
    "force": True,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
def test_the_fingerprint_changes_with_what_changes_the_result_and_with_nothing_else(name):
    other = Params(**{name: OTHER[name]})
    assert getattr(other, name) != getattr(Params(), name)
    assert (other.fingerprint == Params().fingerprint) == (name in LABELS)


# What the parameters and the fingerprint of the defaults were when the first records that are kept were made.
FIRST = {
    "kernel", "patch", "dim", "depth", "epochs", "batch_size", "lr", "schedule", "weight_decay", "decay_1d", "eps",
    "clip", "crop", "crop_scale", "crop_ratio", "flip", "randaugment", "jitter", "erasing", "erasing_mode", "mixup",
    "cutmix", "mix_prob", "label_smoothing", "train_size", "val_size", "select", "seed", "dtype",
}  # fmt: skip
FIRST_FINGERPRINT = "0bf2fb82edb0a352"


def test_a_parameter_that_is_added_orphans_no_record():
    """Whoever adds a parameter says in ADDED which value means "as before": there, the fingerprint is as it was."""
    assert set(TYPES) - set(LABELS) - FIRST == set(ADDED)
    assert Params(**ADDED).fingerprint == Params().fingerprint == FIRST_FINGERPRINT
    made_before = {"fingerprint": FIRST_FINGERPRINT, "numerics": NUMERICS}
    made_before["params"] = {name: value for name, value in Params().computed().items() if name in FIRST}
    assert Params().unlike(made_before) == ""
    assert Params(std="images").unlike(made_before) == "std: pixels -> images"
    assert Params(lr=0.1, arch="vit").unlike(made_before) == "arch: convmixer -> vit, lr: 0.001 -> 0.1"


@pytest.mark.parametrize("arch", UNUSED)
def test_what_means_nothing_to_a_network_does_not_tell_its_runs_apart(arch):
    one, base = Params(arch=arch), Params()
    for name in ("kernel", "patch", "dim", "depth"):
        other = one.replace(**{name: OTHER[name]})
        assert (other.fingerprint == one.fingerprint) == (name in UNUSED[arch])
        assert (run_name(other, base) == run_name(one, base)) == (name in UNUSED[arch])


def test_a_run_is_named_after_what_distinguishes_it():
    base = Params(study="x", dim=64)
    assert run_name(base, base) == "k9-p1-seed0"
    assert run_name(base.replace(kernel=3, seed=2, workers=2, setting="kernel-3"), base) == "k3-p1-seed2"
    assert run_name(base.replace(lr=1e-4, epochs=10), base) == "k9-p1-epochs10-lr0.0001-seed0"
    assert run_name(base.replace(dataset="cifar100"), base) == "k9-p1-datasetcifar100-seed0"
    assert run_name(base.replace(dataset="folder:/far/my pets"), base) == "k9-p1-datasetmy_pets-seed0"
    assert run_name(base.replace(dataset=f"folder:{'long' * 80}"), base) == f"k9-p1-dataset{'long' * 10}-seed0"
    assert run_name(base.replace(flip=False), base) == "k9-p1-flip-off-seed0"
    assert run_name(base.replace(arch="vit", dim=48, patch=4), base) == "vit-p4-dim48-seed0"
    assert run_name(base.replace(arch="cnn", kernel=3, patch=2, dim=32, seed=1), base) == "cnn-seed1"


@given(st.text(), st.floats(min_value=1e-300, max_value=1e300), st.integers(1, 63))
def test_a_run_name_is_always_a_plain_file_name(text, lr, kernel):
    try:
        params = Params(lr=lr, kernel=kernel, randaugment=text)
    except ParameterError:
        params = Params(lr=lr, kernel=kernel, randaugment="rand-m9-mstd0.5-inc1")
    name = run_name(params, Params())
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+-]{1,200}", name)


def test_differences_name_both_values():
    assert differences({"lr": 1, "a": 2}, {"lr": 3, "a": 2}) == "lr: 3 -> 1"
    assert differences({"new": 1}, {}) == "new: absent -> 1"
