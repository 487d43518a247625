"""Models, by the name used in `model` of config/model/*.yaml."""

from pathlib import Path

import torch

from model.ad import AD
from utils import InputError, one_line

MODEL = {"AD": AD}


def load_model(checkpoint: dict, config: dict, path: Path) -> AD:
    """The model of a checkpoint, on the CPU.

    Raises:
        InputError: the weights do not fit the config, or some are not finite.
    """
    try:
        model = MODEL[config["model"]](config)
        model.load_state_dict(checkpoint["model"])
    except Exception as error:  # a stranger's config can be wrong in any way
        raise InputError(f"{path}: its weights do not fit its config ({one_line(error)[:200]})") from None
    for name, weights in model.state_dict().items():
        if not torch.isfinite(weights).all():
            raise InputError(f"{path}: {name} holds values that are not finite; use an earlier checkpoint")
    return model
