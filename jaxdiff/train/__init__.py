"""Training: a pure step, how it runs on devices, checkpoints, and the loop around them."""

from jaxdiff.train.ema import EMA
from jaxdiff.train.state import TrainState
from jaxdiff.train.step import make_train_step

__all__ = ["EMA", "TrainState", "make_train_step"]
