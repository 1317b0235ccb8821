"""The typed parameters of a run: defaults, checks, name and fingerprint. Standard library only.

The defaults are those of the paper as it is written; everything else is an override in a YAML under params/.
"""

import ast
import contextlib
import dataclasses
import difflib
import functools
import hashlib
import json
import math
import numbers
import operator
import re
import typing
from pathlib import PurePath

# Raised by one whenever the same parameters would no longer give the same numbers: an old record or checkpoint
# is then another run's.
NUMERICS = 1

IMAGE = 32  # CIFAR images are 32 x 32, and other pictures are made so
TRAIN_IMAGES = 50_000  # of CIFAR-10, and of CIFAR-100 too

# Parameters that were added when there were records already, each with the value that means "as it was before". At
# that value a parameter does not enter the fingerprint, so earlier records and checkpoints go on being valid.
ADDED = {"arch": "convmixer", "std": "pixels", "dataset": "cifar10"}

# The networks that `arch` may ask for, and what people call one of them. A parameter of the shape that is not part of
# what a network is called has no meaning for it, and counts neither in its fingerprint nor in its run's name.
NETWORKS = {
    "convmixer": "ConvMixer-{dim}/{depth}, k={kernel}, p={patch}",
    "vit": "ViT-{dim}/{depth}, p={patch}",
    "cnn": "three-layer CNN",
}
SHAPE = ("kernel", "patch", "dim", "depth")  # what makes a network
UNUSED = {arch: tuple(name for name in SHAPE if f"{{{name}}}" not in called) for arch, called in NETWORKS.items()}

# The data sets that `dataset` may ask for by name: what people call one, and how many classes it has. A folder of
# pictures is asked for by its path.
DATASETS = {"cifar10": ("CIFAR-10", 10), "cifar100": ("CIFAR-100", 100)}
FOLDER = "folder:"

# Folders of reports/ that are no study's: our own records, and the measurements of speed.
TAKEN = ("published", "bench")

# What a study's YAML says about its runs; the notebook takes it without a complaint, since the same file is
# given to papermill with -f.
OF_A_STUDY = ("settings", "seeds")

CHOICES = {
    "arch": tuple(NETWORKS),
    "schedule": ("constant", "cosine", "triangular", "onecycle"),
    "crop": ("none", "pad", "reflect", "resized"),
    "erasing_mode": ("zero", "pixel"),
    "std": ("pixels", "images"),
    "select": ("last", "best_val", "best_test"),
    "dtype": ("float32", "bfloat16", "float16"),
    "device": ("auto", "cpu", "cuda", "cuda:0", "mps"),
}

# Where, how fast and under which label a run is trained; not what it computes.
LABELS = (
    "test_batch_size", "device", "native", "compile", "workers", "checkpoint_minutes",
    "data_dir", "study", "setting", "force",
)  # fmt: skip


class UserError(Exception):
    """What a user can mend: its text is one line that says what is wrong and what to do. It needs no traceback."""


class ParameterError(UserError, ValueError):
    """An invalid parameter: the line names it and says what is allowed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Params:
    """One run. The lines below, without their indentation, are the `parameters` cell of notebooks/train.ipynb."""

    # the network
    arch: str = "convmixer"  # convmixer, cnn (the three layers that the paper began with) or vit (timm's)
    kernel: int = 9  # depthwise kernel size k
    patch: int = 1  # patch size p, divides 32
    dim: int = 256  # width h
    depth: int = 8  # number of mixing blocks d
    # the optimisation (AdamW)
    epochs: int = 30  # passes over the training images
    batch_size: int = 64  # training images a step
    lr: float = 0.001  # peak learning rate
    schedule: str = "cosine"  # constant, cosine, triangular or onecycle
    weight_decay: float = 0.01  # decoupled, as AdamW has it
    decay_1d: bool = True  # also decay biases and BatchNorm weights
    eps: float = 1e-08  # AdamW's epsilon
    clip: float = 0.0  # largest gradient norm, 0 for no clipping
    # the augmentation
    crop: str = "pad"  # none, pad (by 4, zeros), reflect (by 4) or resized
    crop_scale: float = 0.75  # smallest share of the area kept by a resized crop
    crop_ratio: float = 1.3333333333333333  # widest aspect ratio of a resized crop
    flip: bool = True  # horizontal, half of the images
    randaugment: str = "torchvision-2-9"  # none, torchvision-OPS-MAGNITUDE or a timm string
    jitter: float = 0.0  # brightness, contrast and saturation, 0 for none
    erasing: float = 0.25  # share of images with an erased rectangle
    erasing_mode: str = "zero"  # zero (the mean colour) or pixel (noise)
    mixup: float = 0.5  # alpha, 0 for none
    cutmix: float = 0.5  # alpha, 0 for none
    mix_prob: float = 1.0  # share of batches with mixup or CutMix
    label_smoothing: float = 0.0  # share of the target spread over all classes
    # the data and the choice of the weights
    dataset: str = "cifar10"  # cifar10, cifar100 or folder:PATH (a folder of pictures for each class)
    std: str = "pixels"  # normalise by the deviation of all pixels, or by the mean deviation inside the images
    train_size: int = 0  # training images, the validation split apart; 0 for all
    val_size: int = 5000  # stratified validation split, 0 to train on all
    select: str = "best_val"  # last, best_val or best_test (the leak, labelled as one)
    seed: int = 0  # weights, order, augmentation and split
    dtype: str = "float32"  # float32, bfloat16 or (CUDA) float16
    # how it is run: none of these changes what is computed
    test_batch_size: int = 100  # images a step in evaluation
    device: str = "auto"  # auto, cpu, cuda (one of several: cuda:1) or mps
    native: bool = True  # the native CPU layers, where they can run
    compile: bool = False  # torch.compile
    workers: int = 0  # data loading processes
    checkpoint_minutes: float = 5.0  # between checkpoints inside an epoch
    data_dir: str = ""  # where CIFAR-10 and CIFAR-100 lie, from the repository's root; empty: $CONVMIXER_DATA or data/
    study: str = "own"  # the folder under reports/
    setting: str = ""  # which file of params/settings/ asked for it
    force: bool = False  # train a finished run again

    def __post_init__(self):
        for name, kind in TYPES.items():
            object.__setattr__(self, name, _typed(name, kind, getattr(self, name)))
        _check(self)

    @classmethod
    def of(cls, **values) -> "Params":
        """Parameters from defaults and `values`; an unknown name is an error that suggests the right one."""
        for name in values:
            if name not in TYPES:
                raise ParameterError(f"{name if name.isprintable() else repr(name)}: {_unknown(name)}")
        return cls(**values)

    @classmethod
    def of_notebook(cls, namespace: dict) -> "Params":
        """Parameters from a notebook's globals(). A name that is none is an error if a parameters cell has set it.

        Other names are not looked at: later cells have theirs there too, as have startup files and editors.
        """
        known = (*TYPES, *OF_A_STUDY)
        others = [n for n in _asked(namespace.get("In", ())) if n not in known and not n.isupper()]  # PAPERMILL_...
        return cls.of(**{n: namespace[n] for n in TYPES if n in namespace}, **dict.fromkeys(others))

    def replace(self, **values) -> "Params":
        """The same with other values, checked anew."""
        return type(self).of(**{**dataclasses.asdict(self), **values})

    def computed(self) -> dict:
        """The parameters that change the result, by name."""
        without = (*LABELS, *UNUSED[self.arch])
        return {name: getattr(self, name) for name in TYPES if name not in without}

    @property
    def network(self) -> str:
        """What people call the network: ConvMixer-32/4, k=9, p=2."""
        return NETWORKS[self.arch].format(**self.computed())

    @property
    def data(self) -> str:
        """What people call the data set: CIFAR-10, CIFAR-100, or a folder by its own name."""
        if self.dataset in DATASETS:
            return DATASETS[self.dataset][0]
        return PurePath(self.dataset.removeprefix(FOLDER)).name or "pictures"

    @property
    def train_images(self) -> int | None:
        """Training images of an epoch; None where only the folder that they come from knows."""
        return self.train_size or (TRAIN_IMAGES - self.val_size if self.dataset in DATASETS else None)

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the parameters that change the result and the version of the numerics."""
        counted = {name: value for name, value in self.computed().items() if value != ADDED.get(name)}
        text = json.dumps({**counted, "numerics": NUMERICS}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def unlike(self, made: dict) -> str:
        """How a record or checkpoint (fingerprint, params, numerics) differs from this run: empty if it does not.

        Else one line, with `name: its value -> ours` for each parameter that differs.
        """
        if made.get("fingerprint") == self.fingerprint:
            return ""
        ours = {**self.computed(), "numerics": NUMERICS}
        theirs = {**ADDED, **made.get("params", {}), "numerics": made.get("numerics")}
        return differences(ours, {name: theirs[name] for name in ours if name in theirs}) or "the fingerprint itself"


TYPES: dict[str, type] = typing.get_type_hints(Params)


TORCHVISION_FORM = r"torchvision-([1-9])-([12]?\d|30)"
TIMM_FORM = r"rand-m(\d|10)(?:-n([1-9]))?(?:-p(0\.\d+|1))?(?:-mstd(\d{1,2}(?:\.\d+)?))?-inc1"
FORMS = (
    "none, torchvision-OPS-MAGNITUDE (such as torchvision-2-9, magnitude up to 30) "
    "or rand-mMAGNITUDE[-nOPS][-pSHARE][-mstdSPREAD]-inc1 (such as rand-m9-mstd0.5-inc1, magnitude up to 10)"
)


class Policy(typing.NamedTuple):
    """What a `randaugment` parameter says."""

    origin: str  # none, torchvision or timm
    layers: int = 0  # operations an image
    magnitude: int = 0  # out of 30 (torchvision) or 10 (timm)
    spread: float = 0.0  # timm: standard deviation of the magnitude
    share: float = 1.0  # timm: how often a layer does something


def parse_randaugment(text: str) -> Policy:
    """The policy named by a `randaugment` parameter; ParameterError with the allowed forms for anything else.

    Of timm's strings only the "increasing" set is here (inc1: more magnitude is more change), without mmax and
    weights: no recipe of params/ has them.
    """
    if text == "none":
        return Policy("none")
    if found := re.fullmatch(TORCHVISION_FORM, text):
        return Policy("torchvision", layers=int(found[1]), magnitude=int(found[2]))
    if found := re.fullmatch(TIMM_FORM, text):
        magnitude, layers, share, spread = found.groups()
        return Policy("timm", int(layers or 2), int(magnitude), float(spread or 0), float(share or 0.5))
    raise ParameterError(f"randaugment={text if text.isprintable() else repr(text)}: give {FORMS}")


def run_name(params: Params, base: Params) -> str:
    """The name of a run's folder: network, kernel, patch, what else differs from its study's `base`, and the seed."""
    own = params.computed()
    words = [] if params.arch == "convmixer" else [params.arch]
    words += [f"{name[0]}{own[name]}" for name in ("kernel", "patch") if name in own]
    named = ("arch", "kernel", "patch", "seed")
    own["dataset"] = params.dataset if params.dataset in DATASETS else params.data[:40]  # a path is no part of a name
    words += [f"{n}{_short(own[n])}" for n in own if n not in named and getattr(params, n) != getattr(base, n)]
    return "-".join([*words, f"seed{params.seed}"])


def differences(ours: dict, theirs: dict) -> str:
    """`name: theirs -> ours` for every value that differs, in one line."""
    names = [n for n in {**theirs, **ours} if ours.get(n) != theirs.get(n)]
    return ", ".join(f"{n}: {theirs.get(n, 'absent')} -> {ours.get(n, 'absent')}" for n in names)


def assigned(source: str) -> list[str]:
    """The names that a cell sets at its top level."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError):  # Jupyter's own, such as %matplotlib
        return []
    targets = [t for s in body for t in getattr(s, "targets", [getattr(s, "target", None)])]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _asked(cells: list[str]) -> list[str]:
    """The names that are set by the cell that was run last of those with mostly parameters, and by papermill's."""
    asked = {}
    for cell in cells:
        names, by_papermill = assigned(cell), cell.startswith("# Parameters\n")
        if by_papermill or 2 * sum(name in TYPES for name in names) > len(names):
            asked[by_papermill] = names
    return [name for names in asked.values() for name in names]


def _unknown(name: str) -> str:
    close = difflib.get_close_matches(name, TYPES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else "see lib/params.py for the names there are"
    return f"unknown parameter, {hint}"


def _short(value) -> str:
    """A value as part of a folder's name."""
    text = ("-on" if value else "-off") if isinstance(value, bool) else str(value)
    return re.sub(r"[^A-Za-z0-9.+-]", "_", text)


def _typed(name: str, kind: type, value):
    """`value` as `kind`. Text is converted where it can only mean one thing: YAML reads 1e-3 as text.

    A number of NumPy, such as a row of a DataFrame has, becomes Python's; a truth value never becomes a number.
    """
    text = value.strip() if isinstance(value, str) else None
    if kind is str and isinstance(value, str):
        return value
    if kind is bool:
        if (said := str(value).strip().lower()) in ("true", "false"):  # NumPy's read the same
            return said == "true"
        raise ParameterError(f"{name}={value!r}: give True or False")
    if kind is int:
        if not isinstance(value, bool):
            with contextlib.suppress(TypeError):
                return operator.index(value)
        if text is not None and re.fullmatch(r"[+-]?\d{1,20}", text):
            return int(text)
        raise ParameterError(
            f"{name}={value!r}: give a whole number, such as {Params.__dataclass_fields__[name].default}"
        )
    if kind is float and isinstance(value, (str, numbers.Real)) and not isinstance(value, bool):
        with contextlib.suppress(ValueError, OverflowError):
            return float(value)
    example = Params.__dataclass_fields__[name].default
    raise ParameterError(f"{name}={value!r}: give {'a number' if kind is float else 'text'}, such as {example!r}")


def _need(p: Params, holds: bool, name: str, allowed: str) -> None:
    if not holds:
        text = str(getattr(p, name))
        raise ParameterError(f"{name}={text if text.isprintable() else repr(text)}: {allowed}")


def _check(p: Params) -> None:
    """Rejects invalid values and combinations. Each message is one line: the parameter, its value, what is allowed."""

    need = functools.partial(_need, p)
    for name, kind in TYPES.items():
        need(kind is not float or math.isfinite(getattr(p, name)), name, "give a finite number")
    for name, allowed in CHOICES.items():
        given = re.sub(r"\Acuda:[0-9]{1,3}\Z", "cuda:0", p.device) if name == "device" else getattr(p, name)
        need(given in allowed, name, f"give one of {', '.join(allowed)}")
    parse_randaugment(p.randaugment)
    folder = p.dataset.startswith(FOLDER) and p.dataset != FOLDER and p.dataset.isprintable()
    need(p.dataset in DATASETS or folder, "dataset", f"give {', '.join(DATASETS)} or {FOLDER}PATH{_meant(p.dataset)}")
    for name in ("kernel", "dim", "depth", "epochs", "batch_size", "test_batch_size"):
        need(getattr(p, name) >= 1, name, "give 1 or more")
    need(p.kernel <= 2 * IMAGE - 1, "kernel", f"larger than any image needs, give 1 to {2 * IMAGE - 1}")
    need(p.arch != "vit" or p.dim % 16 == 0, "dim", "a vit has heads of 16 channels, give a multiple of 16")
    divisors = [n for n in range(1, IMAGE + 1) if IMAGE % n == 0]
    need(p.patch in divisors, "patch", f"an image of {IMAGE} x {IMAGE} needs one of {', '.join(map(str, divisors))}")
    for name in ("lr", "eps", "checkpoint_minutes"):
        need(getattr(p, name) > 0, name, "give more than 0")
    for name in ("weight_decay", "clip", "jitter", "mixup", "cutmix", "train_size", "val_size", "workers", "seed"):
        need(getattr(p, name) >= 0, name, "give 0 or more")
    for name in ("erasing", "mix_prob", "label_smoothing"):
        need(0 <= getattr(p, name) <= 1, name, "give a share between 0 and 1")
    need(p.label_smoothing < 1, "label_smoothing", "give less than 1")
    need(0 < p.crop_scale <= 1, "crop_scale", "give a share above 0, up to 1")
    need(p.crop_ratio >= 1, "crop_ratio", "give 1 or more")
    need(p.seed < 2**32, "seed", f"give less than {2**32}")
    if p.dataset in DATASETS:
        classes = DATASETS[p.dataset][1]
        need(p.val_size % classes == 0, "val_size", f"give a multiple of {classes}, the same number from each class")
        check_sizes(p, TRAIN_IMAGES)
    need(p.val_size > 0 or p.select != "best_val", "select", "best_val needs val_size above 0, or take select=last")
    need(p.dtype != "float16" or p.device not in ("cpu", "mps"), "dtype", "float16 needs device=cuda, or take bfloat16")
    for name in ("study", "setting"):
        word = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", getattr(p, name)) and ".." not in getattr(p, name)
        need(bool(word) or (name == "setting" and not p.setting), name, "give letters, digits, '.', '_' and '-' only")
    taken = p.study.lower() in TAKEN  # on a Mac's disk capitals make no other folder
    need(not taken, "study", f"reports/{p.study} is the project's own, give another name")


def check_sizes(p: Params, images: int) -> None:
    """ParameterError unless `images`, those of the training part, suffice for what a run wants of them."""
    need = functools.partial(_need, p)
    of = "" if p.dataset in DATASETS else f" in {p.dataset}"
    need(p.val_size < images, "val_size", f"there are {images} training images{of}, give less")
    left = images - p.val_size
    need(p.train_size <= left, "train_size", f"{left} training images are left beside val_size={p.val_size}")
    n, alone = p.train_size or left, p.arch == "convmixer" and p.patch == IMAGE
    need(p.batch_size <= n, "batch_size", f"there are only {n} training images")
    # BatchNorm needs two values of a channel; one image gives as many as its map has places.
    need(not alone or p.batch_size > 1, "batch_size", f"at patch={p.patch} BatchNorm needs 2 images or more")
    batches = (
        f"{n} training images in batches of {p.batch_size} leave one alone, at patch={p.patch} BatchNorm needs two"
    )
    need(not alone or n % p.batch_size != 1, "batch_size", f"{batches}; change batch_size or train_size")


def _meant(dataset: str) -> str:
    """The hint of what a data set that there is not was meant to be, if that can be guessed."""
    named = dataset.lower().startswith(FOLDER)
    path = dataset[len(FOLDER) :] if named else dataset
    if named or "/" in path:
        return f", did you mean {FOLDER}{path}?" if path and path.isprintable() else ""
    close = difflib.get_close_matches(dataset.lower(), DATASETS, n=1)
    return f", did you mean {close[0]}?" if close else ""
