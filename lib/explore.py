"""A trained network to look into: its weights, what it sees, what it says of images."""

from pathlib import Path

import numpy as np
import pandas as pd
import safetensors
import safetensors.torch
import torch
from torch import nn

from lib import machine, records
from lib import study as studies
from lib.data import datasets
from lib.data.datasets import Dataset
from lib.data.loader import plain_batches
from lib.data.picture import picture  # noqa: F401  for notebooks
from lib.model import ConvMixer, network
from lib.params import Params
from lib.records import Normalisation, RecordError, classes, normalisation

SEEN = 256  # test images over which a receptive field is averaged


def trained(study: str, name: str) -> tuple[Path, dict, nn.Module]:
    """A finished run's folder, its record and its model in evaluation mode, on the CPU.

    Where this machine has not trained it, the published one. RecordError says what is missing.
    """
    if folder := folder_of(study, name):
        return folder, *trained_in(folder)
    there = study in studies.names() and name in [run.name for run in studies.load(study).runs]
    advice = (
        f"`make runs STUDY={study}` trains it (where a record is without weights, move {records.RESULT} away first)"
    )
    if not there:
        advice = f"no file of params/studies/ asks for it; published are {', '.join(published(study))}"
    raise RecordError(f"{study}/{name}: no finished run with its weights, neither here nor published; {advice}")


def folder_of(study: str, name: str) -> Path | None:
    """Where a finished run lies with its weights: on this machine or else among the published ones; None if nowhere."""
    places = (records.folder_of(study, name), records.PUBLISHED / study / "runs" / name)
    return next((place for place in places if is_whole(place)), None)


def is_whole(folder: Path) -> bool:
    """Whether a folder holds a finished run with its weights."""
    return (folder / records.RESULT).exists() and (folder / records.WEIGHTS).exists()


def published(study: str = "") -> list[str]:
    """The published runs with weights, as study/run, of a study or, where there is none of it, of all."""
    found = [f"{record['study']}/{record['run']}" for _, record in records.with_weights(records.PUBLISHED)]
    return [name for name in found if name.startswith(f"{study}/")] or found


def trained_in(folder: Path) -> tuple[dict, nn.Module]:
    """The record and the model of the run that lies in a folder; RecordError if either cannot be read."""
    record = records.read_result(folder / records.RESULT)
    machine.use_cores()
    model = network(Params.of(**record["params"]), len(classes(record)))
    model.load_state_dict(load_weights(folder))
    return record, model.eval()


def data_of(record: dict) -> Dataset | None:
    """The images that a run was trained and tested on; None where they would have to be fetched."""
    return datasets.kept(Params.of(**record["params"]))


def load_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The state dict that lies in a run's folder; RecordError if it cannot be read."""
    try:
        return safetensors.torch.load_file(folder / records.WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise RecordError(f"{folder / records.WEIGHTS}: not readable ({error})") from None


def look_inside(model: nn.Module, images: np.ndarray, normalisation: Normalisation) -> dict[str, np.ndarray]:
    """What a network looks like, as small arrays, of those that its kind has.

    patch_embedding (h, 3, p, p) and depthwise (blocks, h, k, k) are weights, float16; `blocks` says which blocks these
    are, counted from 0: the first, the middle and the last. receptive_field (32, 32), float32, is the effective one
    (Luo et al., arXiv 1701.04128): for each pixel, the mean absolute gradient of the central place's features, summed
    over channels, over colours and the first SEEN of `images` (N, 32, 32, 3), uint8, in evaluation mode.
    """
    found = {"receptive_field": receptive_field(model, images[:SEEN], normalisation)}
    if isinstance(model, ConvMixer):
        blocks = sorted({0, len(model.blocks) // 2, len(model.blocks) - 1})
        kernels = torch.stack([model.blocks[i][0].fn[0].weight[:, 0] for i in blocks])  # (blocks, h, k, k)
        found |= {"patch_embedding": _half(model.stem[0].weight), "depthwise": _half(kernels)}
        found["blocks"] = np.array(blocks, np.uint8)
    elif hasattr(model, "patch_embed"):  # timm's networks
        found["patch_embedding"] = _half(model.patch_embed.proj.weight)
    return found


def receptive_field(model: nn.Module, images: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """The effective receptive field (32, 32), float32, of the place in the middle: see look_inside."""
    device = next(model.parameters()).device
    total, training = 0, model.training
    model.eval()
    for batch in plain_batches(images, 64, normalisation):
        batch = batch.to(device).requires_grad_()
        features = model.forward_features(batch)
        if features.ndim == 3:  # a vit's tokens (B, 1 + n/p n/p, h), the class token first
            side = round((features.shape[1] - 1) ** 0.5)
            features = features[:, 1:].mT.unflatten(2, (side, side))
        middle = features[:, :, features.shape[2] // 2, features.shape[3] // 2]  # (B, h)
        (gradient,) = torch.autograd.grad(middle.float().sum(), batch)
        total = total + gradient.abs().mean(1).sum(0)
    model.train(training)
    return (total / len(images)).cpu().numpy()


def _half(weight: torch.Tensor) -> np.ndarray:
    return weight.detach().half().cpu().numpy()


@torch.inference_mode()
def probabilities(model: nn.Module, images: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """The network's probability of each class, (N, classes), for images (N, 32, 32, 3), uint8."""
    return torch.cat([model(batch).softmax(1) for batch in plain_batches(images, 100, normalisation)]).numpy()


def top(record: dict, model: nn.Module, image: np.ndarray) -> pd.Series:
    """The probability (%) of each class of a run for one image (32, 32, 3), uint8, the likeliest first."""
    found = 100 * probabilities(model, image[None], normalisation(record))[0]
    named = pd.Series(found, index=classes(record), name="probability (%)")
    return named.sort_values(ascending=False, kind="stable")
