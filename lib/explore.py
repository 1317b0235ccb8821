"""A trained network to look into: its weights, what it says of images. For notebooks/explore.ipynb."""

import numpy as np
import pandas as pd
import safetensors.torch
import torch
from PIL import Image, ImageOps

from lib import records
from lib.augment import normalise
from lib.data import MEAN, STD, as_images
from lib.download import cifar10  # noqa: F401  the notebook's
from lib.model import ConvMixer
from lib.records import CLASSES, RecordError


def trained(study: str, name: str) -> tuple[dict, ConvMixer]:
    """A finished run's record and its model in evaluation mode, on the CPU. RecordError says what is missing."""
    folder = records.study_folder(study) / "runs" / name
    if not (folder / records.RESULT).exists():
        raise RecordError(f"{folder}: no finished run; `make runs STUDY={study}` trains it")
    record = records.read_result(folder / records.RESULT)
    if not (folder / records.WEIGHTS).exists():
        raise RecordError(
            f"{folder}: the record is there, the weights are not (git does not keep them); "
            f"move result.json away and `make runs STUDY={study}` trains the run again"
        )
    p = record["params"]
    model = ConvMixer(p["dim"], p["depth"], p["kernel"], p["patch"])
    model.load_state_dict(safetensors.torch.load_file(folder / records.WEIGHTS))
    return record, model.eval()


@torch.inference_mode()
def probabilities(model: ConvMixer, images: np.ndarray) -> np.ndarray:
    """The network's probability of each class, (N, 10), for images (N, 32, 32, 3), uint8."""
    batches = torch.split(as_images(normalise(images, MEAN, STD)), 100)
    return torch.cat([model(batch).softmax(1) for batch in batches]).numpy()


def picture(path: str) -> np.ndarray:
    """An image file's central square as (32, 32, 3), uint8."""
    return np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), (32, 32), Image.Resampling.LANCZOS))


def top(model: ConvMixer, image: np.ndarray, count: int = 3) -> pd.Series:
    """The `count` likeliest classes of one image (32, 32, 3), in per cent."""
    chances = pd.Series(100 * probabilities(model, image[None])[0], index=CLASSES, name="probability (%)")
    return chances.nlargest(count).round(1)
