"""What a trained model is worth: its loss on held-out data, its errors by noise level, and the report of its run."""

from jaxdiff.evaluate.held_out import epoch, evaluator

__all__ = ["epoch", "evaluator"]
