"""What a model is, in plain values: a network's name and fields, and the meaning of its input, output and time.

A preset is a `Spec` with a name. A converter makes one from another project's configuration, a folder of converted
weights keeps one as JSON, and `jaxdiff.build.model_of` makes the `Model`.
"""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Spec:
    """A model as plain values.

    Args:
        network: a key of `jaxdiff.models.REGISTRY`.
        fields: of that network.
        shape: of one example, channels last, without the batch axis.
        process: arguments of `jaxdiff.processes.make`, its "name" among them.
        prediction: what the output means, a name of `jaxdiff.prediction.REGISTRY`.
        input_scale: "none", or "unit_variance" (EDM's c_in).
        time_input: arguments of `jaxdiff.model.time_input`, its "name" among them.
        sigma_data: the data's standard deviation, for "unit_variance" and the "edm" prediction.
        layout: what a file of another project's weights needs said beside its names and shapes.
        parameters: how many, as published or as counted in the original code; 0 if unknown.
        reference: where the numbers are from.

    Examples:
        >>> Spec("unet", {"channels": 64}, (32, 32, 3)).process
        {'name': 'ddpm_linear'}
    """

    network: str
    fields: dict[str, Any]
    shape: tuple[int, ...]
    process: dict[str, Any] = field(default_factory=lambda: {"name": "ddpm_linear"})
    prediction: str = "eps"
    input_scale: str = "none"
    time_input: dict[str, Any] = field(default_factory=lambda: {"name": "index"})
    sigma_data: float = 0.5
    layout: dict[str, Any] = field(default_factory=dict)
    parameters: int = 0
    reference: str = ""
