"""A study: settings, seeds and a budget that make one report. Read from params/, expanded into runs.

params/studies/NAME.yaml holds the overrides that all its runs share and, beside them, `settings` (files of
params/settings/, in the report's order) and `seeds`. A setting's own overrides come after the study's; an entry
of `settings` may be a mapping {name: {overrides}} where this study wants a setting changed, or other seeds for it.
One that is listed several times, each time changed in another way, is as many settings: "vit lr=0.001", for example.
"""

import dataclasses
import os
from itertools import repeat, takewhile
from pathlib import Path

import yaml

from lib.params import OF_A_STUDY, ParameterError, Params, run_name

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "params"


@dataclasses.dataclass(frozen=True)
class Run:
    """One configuration with one seed in a study, and every setting that shows it (k=9, p=1 is in two ablations)."""

    name: str
    params: Params
    settings: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Study:
    """A name, what all runs share, and the runs in the order in which they are trained."""

    name: str
    purpose: str  # the comment that opens the file
    base: Params
    runs: tuple[Run, ...]

    def runs_of(self, setting: str) -> list[Run]:
        """The runs of a setting, one a seed; empty where this study leaves the setting out."""
        return [run for run in self.runs if setting in run.settings]


def read_yaml(path: Path) -> dict:
    """The mapping in a YAML file; ParameterError names the file and, where it can, the line."""
    name = shown(path)
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(name))
    except FileNotFoundError:
        raise ParameterError(f"{name}: no such file") from None
    except OSError as error:
        raise ParameterError(f"{name}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        line = path.read_bytes()[: error.start].count(b"\n") + 1
        raise ParameterError(f"{name}, line {line}: not UTF-8, save the file as UTF-8") from None


def parse_yaml(text: str, name: str) -> dict:
    """The mapping in a YAML text; ParameterError calls it `name` and says, where it can, the line."""
    try:
        values = yaml.load(text, Loader=_Strict)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ParameterError(f"{name}{line}: {problem}") from None
    except ValueError as error:  # a number or a date that Python cannot hold
        raise ParameterError(f"{name}: {error}") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ParameterError(f"{name}, line 1: give `name: value` lines, this is {_kind(values)}")
    return values


def folder(variable: str, usual: str) -> Path:
    """A folder that a variable of the environment may name; from the repository's root where it is relative."""
    return ROOT / Path(os.environ.get(variable) or usual).expanduser()


def shown(path: Path) -> Path:
    """A path as messages have it: from the repository's root where it lies inside."""
    path = path.resolve()
    return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path


def names() -> list[str]:
    """The studies there are files for."""
    return sorted(path.stem for path in (PARAMS / "studies").glob("*.yaml"))


def base_params(name: str) -> Params:
    """What all runs of a study share: its file's overrides, or the defaults where a study has no file."""
    path = PARAMS / "studies" / f"{name}.yaml"
    return _named(path, of_runs(read_yaml(path))) if path.exists() else Params(study=name)


def of_runs(values: dict) -> dict:
    """What a study's file says of its runs: all but which settings and seeds there are."""
    return {name: value for name, value in values.items() if name not in OF_A_STUDY}


def load(name: str) -> Study:
    """The study `name`, checked whole: every run's parameters are valid before the first is trained."""
    path = PARAMS / "studies" / f"{name}.yaml"
    if not path.exists():
        raise ParameterError(f"study={name}: no params/studies/{name}.yaml, there are {', '.join(names())}")
    values = read_yaml(path)
    base = _named(path, of_runs(values))
    if base.study != name:
        raise ParameterError(f"{shown(path)}: says study: {base.study}, its file name says {name}")
    seeds = _seeds(values.get("seeds", [base.seed]), path)
    asked = values.get("settings", [])
    if not isinstance(asked, list) or not asked:
        raise ParameterError(f"{shown(path)}: settings: give a list of files in params/settings/")
    shared = of_runs(values)
    entries = [
        (setting, overrides, overrides.pop("seeds", seeds)) for setting, overrides in map(_entry, asked, repeat(path))
    ]
    labels = _labels([(setting, overrides) for setting, overrides, _ in entries], path)
    seeds = list(dict.fromkeys(seed for *_, own in entries for seed in _seeds(own, path)))
    runs: dict[str, Run] = {}
    for seed in seeds:  # the first seed of every setting, then the second
        for label, (setting, overrides, own) in zip(labels, entries, strict=True):
            if seed not in own:
                continue
            file = PARAMS / "settings" / f"{setting}.yaml"
            theirs, ours = {**read_yaml(file), "setting": setting}, {**overrides, "seed": seed}
            params = _blamed({path: {**shared, **ours}, file: theirs}, {**shared, **theirs, **ours})
            if (params.dataset, params.study) != (base.dataset, name):
                where = path if {"dataset", "study"} & set(overrides) else file
                raise ParameterError(f"{shown(where)}: `dataset:` and `study:` belong at the top of {shown(path)}")
            run = Run(run_name(params, base), params, (label,))
            if run.name in runs:
                earlier = runs[run.name]
                run = dataclasses.replace(earlier, settings=(*earlier.settings, label))
            runs[run.name] = run
    return Study(name, _comment(path), base, tuple(runs.values()))


def _seeds(seeds, path: Path) -> list:
    single = isinstance(seeds, list) and not any(isinstance(seed, (list, dict)) for seed in seeds)
    if not single or not seeds or len(set(map(str, seeds))) < len(seeds):
        raise ParameterError(f"{shown(path)}: seeds: give a list of different whole numbers")
    return seeds


def _entry(item, path: Path) -> tuple[str, dict]:
    """An entry of `settings` as a name and this study's overrides of it."""
    name, overrides = next(iter(item.items())) if isinstance(item, dict) and len(item) == 1 else (item, {})
    if (
        isinstance(name, str)
        and Path(name).name == name
        and isinstance(overrides, dict)
        and all(isinstance(key, str) for key in overrides)
    ):
        return name, dict(overrides)
    raise ParameterError(f"{shown(path)}: settings: {item!r} is neither a name nor `name: {{overrides}}`")


def _labels(entries: list[tuple[str, dict]], path: Path) -> list[str]:
    """What the report calls each entry: the setting's name, with the overrides behind it where it is listed again."""
    names = [name for name, _ in entries]
    labels = [
        " ".join([name, *(f"{key}={value}" for key, value in overrides.items())]) if names.count(name) > 1 else name
        for name, overrides in entries
    ]
    if twice := [label for label in labels if labels.count(label) > 1]:
        raise ParameterError(f"{shown(path)}: settings: {twice[0]} is listed twice")
    return labels


def _named(path: Path, values: dict) -> Params:
    """Parameters from a file's values; an error names the file."""
    try:
        return Params.of(**values)
    except ParameterError as error:
        raise ParameterError(f"{shown(path)}: {error}") from None


def _blamed(parts: dict[Path, dict], values: dict) -> Params:
    """Parameters from the values of several files; an error names those wrong by themselves, or else all."""
    try:
        return Params.of(**values)
    except ParameterError as error:
        alone = [path for path, part in parts.items() if _fault(part) == str(error)]
        files = " with ".join(str(shown(path)) for path in alone or parts)
        raise ParameterError(f"{files}: {error}") from None


def _fault(values: dict) -> str:
    """What is wrong with values beside the defaults; empty where nothing is."""
    try:
        Params.of(**values)
    except ParameterError as error:
        return str(error)
    return ""


def _comment(path: Path) -> str:
    """The comment that opens a file, as one line."""
    lines = takewhile(lambda line: line.startswith("#"), path.read_text(encoding="utf-8").splitlines())
    return " ".join(line.lstrip("# ").rstrip() for line in lines)


def _kind(value) -> str:
    return {type(None): "empty", list: "a list", dict: "a mapping whose names are not all text"}.get(
        type(value), "a single value"
    )


class _Strict(yaml.SafeLoader):
    """YAML that refuses a key given twice: the second would silently win."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key, _ in node.value:
            name = self.construct_object(key, deep=deep) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{name} is given twice", key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)
