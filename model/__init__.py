"""Models, by the name used in `model` of config/model/*.yaml."""

from model.ad import AD

MODEL = {"AD": AD}
