"""diffusers' UNet2DModel: configuration and weights, both ways.

What its config.json says becomes the fields of a `UNet`; what it can say that a `UNet` cannot is refused. Of the
weights these are more than renamed.

Queries, keys and values are three maps there, one here. The features of time are [sin, cos] here; with
flip_sin_to_cos they are [cos, sin] there, so the input channels of the first map trade halves.

With time_embedding_type "fourier" the network n sees sin and cos of 2 pi w ln(sigma), and the model answers

    s(x, sigma) = n(x, ln sigma) / sigma,                                                     (1)

which its scheduler takes for the score, -eps / sigma. Hence

    eps = -n(x, ln sigma),                                                                    (2)

and n is the sum of the last convolution and of those of the pyramid: with their signs changed ours predicts eps. The
time input "log_sigma" is ln(sigma) / 4, and so the frequencies are 4 w. Both are exact in floating point.
"""

from collections.abc import Mapping
from typing import Any

from jaxdiff.convert.diffusers import schedulers
from jaxdiff.convert.diffusers.configuration import config, shape
from jaxdiff.convert.diffusers.keys import MODEL, checked
from jaxdiff.convert.diffusers.network import fields
from jaxdiff.convert.diffusers.rows import recognises, renamed, table
from jaxdiff.convert.diffusers.schedulers import scheduler
from jaxdiff.convert.diffusers.values import bad, public
from jaxdiff.convert.json_files import tuples
from jaxdiff.models.presets.spec import Spec

FAMILY = "diffusers"


def spec(config: Mapping[str, Any], scheduler: Mapping[str, Any] | None = None) -> Spec:
    """What a UNet2DModel and its scheduler say, as a `Spec`.

    Args:
        config: the network's config.json as a dict; keys it lacks have diffusers' defaults.
        scheduler: scheduler_config.json as a dict. None for the defaults of DDPMScheduler, or, where
            time_embedding_type is "fourier", of ScoreSdeVeScheduler, whose data lie in [0, 1].

    Returns:
        The spec; its layout keeps both, so that `config` and `scheduler` give back what was read.

    Raises:
        UsageError: a key, value or combination that has no counterpart here.

    Examples:
        >>> made = spec({"sample_size": 32, "block_out_channels": [64, 128, 192, 192], "dropout": 0.1})
        >>> made.shape, made.fields["channel_mult"], made.process["name"]
        ((32, 32, 3), (1, 2, 3, 3), 'ddpm_linear')

    Reference: von Platen et al., Diffusers, 2022, https://github.com/huggingface/diffusers, class UNet2DModel.
    """
    c = checked(config)
    given = _usual(c) if scheduler is None else scheduler
    made, meant = fields(c), schedulers.meaning(given)
    kind, name = c["time_embedding_type"], given.get("_class_name")
    fourier = kind == "fourier"
    if fourier != (name == schedulers.VE):
        allowed = schedulers.VE if fourier else "one that tells the network a row or a time"
        raise bad("scheduler", name, f"{allowed} where time_embedding_type is {kind}")
    if kind == "learned" and not (meant.steps and meant.steps <= c["num_train_timesteps"]):
        raise bad("num_train_timesteps", c["num_train_timesteps"], f"the number of steps of {name} or more")
    schedulers.check_variance(meant, c["out_channels"], made["learned_variance"])
    layout: dict[str, Any] = {"family": FAMILY, "config": tuples(public(config))}
    if scheduler is not None:
        layout["scheduler"] = tuples({"_class_name": name, **public(scheduler)})
    return Spec(
        "unet", made, shape(c), meant.process, meant.prediction, "none", meant.time_input, layout=layout,
        reference=f"a {MODEL} of diffusers",
    )  # fmt: skip


def _usual(c: dict[str, Any]) -> dict[str, Any]:
    """A scheduler for a network that comes without one."""
    if c["time_embedding_type"] == "fourier":
        return {"_class_name": schedulers.VE}
    return {"_class_name": "DDPMScheduler", "num_train_timesteps": c["num_train_timesteps"] or 1000}


__all__ = ["FAMILY", "MODEL", "config", "recognises", "renamed", "scheduler", "spec", "table"]
