"""Models, by the name used in `model` of config/model/*.yaml."""

from pathlib import Path

import torch
from torch import nn

from model.ad import AD
from utils import InputError, one_line

MODEL = {"AD": AD}


def lay_out_for_acting(model: nn.Module) -> nn.Module:
    """Store weight matrices column by column; values and results stay as they are, to rounding.

    Acting multiplies few rows at a time: the product then spends more time on reordering a matrix that is
    stored row by row than on its arithmetic.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model


def load_model(checkpoint: dict, config: dict, path: Path) -> AD:
    """The model of a checkpoint, on the CPU, to act with.

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
    return lay_out_for_acting(model)
