"""Guidance: functions from denoiser to denoiser that keep alpha x0 + sigma eps = x. A guidance scale of 1 is off."""

from jaxdiff.guidance.classifier_free import classifier_free
from jaxdiff.guidance.threshold import static_threshold

__all__ = ["classifier_free", "static_threshold"]
