"""Models, by the name used in `model` of config/model/*.yaml."""

from pathlib import Path

import torch
from torch import nn

from files import InputError, describe_foreign_error, one_line
from model.ad import AD
from model.context import CONTEXT, Context, context_class
from model.interface import Model
from utils import find_class

MODEL: dict[str, type[Model]] = {"AD": AD}
OWN_METHODS = {"model": ("forward", "actor"), "context": ("n_places", "cut", "layout")}


def make_model(config: dict) -> Model:
    """The model of the effective config: one of `MODEL`, or `module:Class`."""
    return find_class(config["model"], MODEL)(config)


def config_problems(config: dict) -> list[str]:
    """What is wrong with the model part of a config, beyond types and ranges."""
    problems = []
    for name, table, base in (("model", MODEL, Model), ("context", CONTEXT, Context)):
        try:
            found = find_class(config[name], table)
            if not (isinstance(found, type) and issubclass(found, base)):
                problems.append(
                    f"{name}: '{config[name]}' is no class that builds on {base.__module__}.{base.__name__}"
                )
            elif missing := [method for method in OWN_METHODS[name] if getattr(found, method) is getattr(base, method)]:
                problems.append(
                    f"{name}: '{config[name]}' has no {' and no '.join(missing)} of its own, as every {name} has"
                )
        except KeyError:
            problems.append(f"{name}: unknown '{config[name]}', expected one of {', '.join(table)}, or module:Class")
        except Exception as error:  # whatever a user's module raises
            problems.append(f"{name}: '{config[name]}' cannot be imported: {describe_foreign_error(error)}")
    if problems:
        return problems
    strategy = context_class(config)
    if strategy.marks_regions != config["use_compressed_context"]:
        problems.append(
            f"context: {config['context']} {'marks' if strategy.marks_regions else 'does not mark'} regions, so "
            f"use_compressed_context must be {str(strategy.marks_regions).lower()}"
        )
    return problems + strategy.problems(config)


def lay_out_for_acting(model: nn.Module) -> nn.Module:
    """Store weight matrices column by column; values and results stay as they are, to rounding.

    Acting multiplies few rows at a time: the product then spends more time on reordering a matrix that is
    stored row by row than on its arithmetic.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data = module.weight.data.t().contiguous().t()
    return model


def load_model(checkpoint: dict, config: dict, path: Path) -> Model:
    """The model of a checkpoint, on the CPU, to act with.

    Raises:
        InputError: the weights do not fit the config, or some are not finite.
    """
    try:
        model = make_model(config)
        model.load_state_dict(checkpoint["model"])
    except Exception as error:  # a stranger's config can be wrong in any way, and the class may be a stranger's too
        said = describe_foreign_error(error) if ":" in config["model"] else one_line(error, 200)
        raise InputError(f"{path}: its weights do not fit its config ({said})") from error
    for name, weights in model.state_dict().items():
        if not torch.isfinite(weights).all():
            raise InputError(f"{path}: {name} holds values that are not finite; use an earlier checkpoint")
    return lay_out_for_acting(model)
