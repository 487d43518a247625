"""Context strategies, by the name used in `context` of config/model/*.yaml."""

from model.context.base import Context
from model.context.memory import Memory
from model.context.regions import Regions
from model.context.window import Window
from utils import find_class

CONTEXT: dict[str, type[Context]] = {"window": Window, "regions": Regions, "memory": Memory}


def context_class(config: dict) -> type[Context]:
    """The strategy of a config: one of `CONTEXT`, or `module:Class`."""
    return find_class(config["context"], CONTEXT)


def make_context(config: dict) -> Context:
    """The strategy of the effective config."""
    return context_class(config)(config)
