"""Studies and settings: the files of the repository are valid, and a broken file is refused by name and line."""

import pytest

from lib import records
from lib import study as studies
from lib.params import ParameterError, Params
from lib.study import PARAMS, read_yaml

SETTINGS = sorted(path.stem for path in (PARAMS / "settings").glob("*.yaml"))


@pytest.fixture
def params_folder(tmp_path, monkeypatch):
    """An empty params/ in the place of the repository's."""
    for part in ("studies", "settings"):
        (tmp_path / part).mkdir()
    (tmp_path / "settings" / "kernel-3.yaml").write_text("kernel: 3\n")
    (tmp_path / "settings" / "kernel-9.yaml").write_text("kernel: 9\n")
    (tmp_path / "settings" / "patch-1.yaml").write_text("patch: 1\n")
    monkeypatch.setattr(studies, "PARAMS", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", studies.names())
def test_each_study_of_the_repository_expands_and_says_what_it_is_for(name):
    study = studies.load(name)
    assert study.runs and study.purpose
    assert len({run.params.fingerprint for run in study.runs}) == len(study.runs)
    for setting in {setting for run in study.runs for setting in run.settings}:
        alike = {run.params.replace(seed=0, setting="") for run in study.runs_of(setting)}
        assert len(alike) == 1, f"{setting} is several configurations: no table can show it"


@pytest.mark.parametrize("name, arch", [("laptop", "vit"), ("laptop", "cnn"), ("fast", "convmixer")])
def test_a_study_has_the_recipe_that_validation_chose(name, arch, monkeypatch):
    """Of the published trials the best in validation; where one is missing, nothing was chosen."""
    monkeypatch.setattr(records, "REPORTS", records.PUBLISHED)
    trials = records.load(studies.load(f"trials_{name}"))
    trials = trials[trials["arch"] == arch]
    assert (trials["status"] == "done").all()
    best = trials.loc[trials["val_acc"].idxmax(), "params"]
    asked = {(run.params.lr, run.params.batch_size) for run in studies.load(name).runs if run.params.arch == arch}
    assert asked == {(best["lr"], best["batch_size"])}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_setting_opens_with_a_comment_and_says_what_its_name_says(name):
    path = PARAMS / "settings" / f"{name}.yaml"
    values = read_yaml(path)
    assert path.read_text().startswith("# ")
    Params.of(**values)
    what, _, size = name.partition("-")
    if what in ("kernel", "patch", "lr"):
        assert values[what] == float(size)


def test_the_paper_study_is_the_defaults():
    assert studies.load("paper").base == Params(study="paper")


def test_one_configuration_is_one_run_however_many_settings_show_it():
    runs = studies.load("paper").runs
    assert [run.settings for run in runs if run.name == "k9-p1-seed0"] == [("kernel-9", "patch-1")]
    assert len(studies.load("laptop").runs) == 11 * 5


def test_a_study_is_of_one_data_set(params_folder):
    text = "study: s\ndataset: cifar100\nsettings: [kernel-3]\n"
    (params_folder / "studies" / "s.yaml").write_text(text)
    assert [run.name for run in studies.load("s").runs] == ["k3-p1-seed0"]
    for line in ("dataset: cifar10", "study: other"):
        (params_folder / "settings" / "kernel-3.yaml").write_text(f"kernel: 3\n{line}\n")
        with pytest.raises(ParameterError, match=r"kernel-3.yaml: `dataset:` and `study:` belong at the top of .*s.y"):
            studies.load("s")


def test_a_study_may_change_a_setting_and_a_setting_changes_the_study(params_folder):
    text = "study: s\nepochs: 7\nkernel: 5\nseeds: [3, 4]\nsettings: [kernel-3, patch-1: {epochs: 2}]\n"
    (params_folder / "studies" / "s.yaml").write_text(text)
    runs = studies.load("s").runs
    assert [(r.name, r.params.kernel, r.params.epochs) for r in runs] == [
        ("k3-p1-seed3", 3, 7), ("k5-p1-epochs2-seed3", 5, 2), ("k3-p1-seed4", 3, 7), ("k5-p1-epochs2-seed4", 5, 2),
    ]  # fmt: skip
    assert [run.params.seed for run in studies.load("s").runs_of("patch-1")] == [3, 4]


@pytest.mark.parametrize("content", ["kernel: 3\nseeds: [1]\n", "kernel: 3\nsettings: [kernel-9]\n"])
def test_seeds_and_settings_are_a_studys_alone(params_folder, content):
    (params_folder / "studies" / "s.yaml").write_text("study: s\nsettings: [kernel-3]\n")
    (params_folder / "settings" / "kernel-3.yaml").write_text(content)
    with pytest.raises(ParameterError, match=r"kernel-3.yaml: se\w+: unknown parameter, did you mean s"):
        studies.load("s")


def test_the_name_of_a_setting_is_checked_before_anything_is_trained(params_folder):
    (params_folder / "settings" / "größe.yaml").write_text("kernel: 3\n")
    (params_folder / "studies" / "s.yaml").write_text("study: s\nsettings: [größe]\n")
    with pytest.raises(ParameterError, match=r"größe.yaml: setting=größe: give letters, digits"):
        studies.load("s")


def test_a_setting_may_have_seeds_of_its_own(params_folder):
    text = "study: s\nseeds: [3]\nsettings: [patch-1: {seeds: [3, 5]}, kernel-3]\n"
    (params_folder / "studies" / "s.yaml").write_text(text)
    assert [run.name for run in studies.load("s").runs] == ["k9-p1-seed3", "k3-p1-seed3", "k9-p1-seed5"]
    (params_folder / "studies" / "s.yaml").write_text(text.replace("[3, 5]", "[5, 5]"))
    with pytest.raises(ParameterError, match="seeds: give a list of different"):
        studies.load("s")


def test_a_setting_that_is_changed_in_several_ways_is_several(params_folder):
    text = "study: s\nsettings: [kernel-3: {lr: 0.1}, kernel-3: {lr: 0.2, epochs: 5}, kernel-3, kernel-9: {lr: 0.1}]\n"
    (params_folder / "studies" / "s.yaml").write_text(text)
    labels = ["kernel-3 lr=0.1", "kernel-3 lr=0.2 epochs=5", "kernel-3", "kernel-9"]
    assert [run.settings for run in studies.load("s").runs] == [(label,) for label in labels]


BROKEN = [
    (b"- a\n- b\n", "line 1: give `name: value` lines, this is a list"),
    (b"", "line 1: give `name: value` lines, this is empty"),
    (b"# only a comment\n", "this is empty"),
    (b"study: s\nlr: 1.0\nlr: 2.0\n", "line 3: lr is given twice"),
    (b"study: s\n# caf\xe9\n", "line 2: not UTF-8"),
    (b"study: [s\n", "line 2"),
    (b"study: s\nkernal: 3\nsettings: [kernel-3]\n", "kernal: unknown parameter, did you mean kernel?"),
    (b"study: other\nsettings: [kernel-3]\n", "says study: other, its file name says s"),
    (b"study: s\n", "settings: give a list"),
    (b"study: s\nsettings: [nothing]\n", "nothing.yaml: no such file"),
    (b"study: s\nsettings: [kernel-3, kernel-3]\n", "settings: kernel-3 is listed twice"),
    (b"study: s\nsettings: [[kernel-3]]\n", "is neither a name nor"),
    (b"study: s\nsettings: [../settings/kernel-3]\n", "is neither a name nor"),
    (b"study: s\nsettings: [kernel-3]\nseeds: [1, 1]\n", "seeds: give a list of different whole numbers"),
    (b"study: s\nsettings: [kernel-3]\nseeds: [[1]]\n", "seeds: give a list of different whole numbers"),
    (b"study: s\nsettings: [kernel-3: {1: 2}]\n", "is neither a name nor"),
    (b"study: s\nsettings: [kernel-3]\nseeds: [a]\n", "seed='a': give a whole number"),
    (b"study: s\nsettings: [kernel-3]\nlr: .nan\n", "lr=nan: give a finite number"),
    (b"1: 2\n", "a mapping whose names are not all text"),
]


@pytest.mark.parametrize("content, words", BROKEN)
def test_a_broken_file_is_refused_by_name(params_folder, content, words):
    (params_folder / "studies" / "s.yaml").write_bytes(content)
    with pytest.raises(ParameterError) as refusal:
        studies.load("s")
    assert words in str(refusal.value)
    assert ".yaml" in str(refusal.value)
    assert "\n" not in str(refusal.value)


# What stands in studies/s.yaml and in settings/odd.yaml, and which of the two a person has to open.
AT_FAULT = [
    ("settings: [kernel-3: {lr: -1}]", "", ["s"], "lr=-1.0: give more than 0"),
    ("settings: [kernel-3: {kernl: 3}]", "", ["s"], "kernl: unknown parameter"),
    ("settings: [kernel-3: {dataset: cifar100}]", "", ["s"], "`dataset:` and `study:` belong at the top of"),
    ("settings: [kernel-3: {seeds: [a]}]", "", ["s"], "seed='a'"),
    ("settings: [kernel-3]\nseeds: [a]", "", ["s"], "seed='a'"),
    ("settings: [odd]", "lr: -1", ["odd"], "lr=-1.0"),
    ("settings: [odd]", "kernl: 3", ["odd"], "kernl: unknown parameter"),
    ("settings: [odd]\nlr: 0.1", "{arch: vit, dim: 20}", ["odd"], "dim=20: a vit has heads of 16"),
    ("settings: [odd]\ndim: 20", "arch: vit", ["s", "odd"], "dim=20: a vit has heads of 16"),
    ("settings: [odd: {dim: 20}]", "arch: vit", ["s", "odd"], "dim=20: a vit has heads of 16"),
    ("settings: [odd]\nbatch_size: 1", "patch: 32", ["s", "odd"], "batch_size=1: at patch=32"),
]


@pytest.mark.parametrize("study, setting, files, words", AT_FAULT)
def test_the_file_that_is_named_is_the_one_at_fault(params_folder, study, setting, files, words):
    (params_folder / "studies" / "s.yaml").write_text(f"study: s\n{study}\n")
    (params_folder / "settings" / "odd.yaml").write_text(f"{setting}\n")
    with pytest.raises(ParameterError) as refusal:
        studies.load("s")
    named, _, said = str(refusal.value).partition(".yaml: ")
    assert [path.rpartition("/")[2] for path in f"{named}.yaml".split(" with ")] == [f"{name}.yaml" for name in files]
    assert said.startswith(words)


def test_an_unknown_study_is_told_which_there_are():
    with pytest.raises(ParameterError, match=r"no params/studies/quik.yaml, there are .*quick"):
        studies.load("quik")
