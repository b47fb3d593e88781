"""What a spec's network holds: its parameter tree, without computing anything."""

import jax
import jax.numpy as jnp

from jaxdiff.model import Model
from jaxdiff.models.presets import Spec
from jaxdiff.types import PyTree


def model(spec: Spec) -> Model:
    """`jaxdiff.build.model_of`, imported when it is needed: it brings training and data, which a table does without."""
    from jaxdiff import build

    return build.model_of(spec)


def shapes(spec: Spec) -> PyTree:
    """The parameter tree of a spec's network; nothing is computed.

    Args:
        spec: a `jaxdiff.models.presets.Spec`.

    Returns:
        jax.ShapeDtypeStruct in nested dicts.

    Raises:
        UsageError: for a spec of no network.
    """
    made = model(spec)

    def init() -> PyTree:
        cond = {name: jnp.zeros(shape, kind) for name, (shape, kind) in _conditions(spec).items()}
        return made.apply.init(jax.random.key(0), jnp.zeros((1, *spec.shape)), None, cond)  # type: ignore[attr-defined]

    return jax.eval_shape(init)


def _conditions(spec: Spec) -> dict[str, tuple[tuple[int, ...], str]]:
    """The entries of cond that a network's fields ask for, one example of each."""
    fields = spec.fields
    image = ((1, *spec.shape), "float32")
    made: dict[str, tuple[tuple[int, ...], str]] = dict.fromkeys(fields.get("concat", ()), image)
    if fields.get("num_classes"):
        made["label"] = ((1,), "int32")
    if fields.get("context_dim"):
        made["context"] = ((1, 1, fields["context_dim"]), "float32")
    if fields.get("aug_level"):
        made["aug_level"] = ((1,), "float32")
    if fields.get("pooled", "none") != "none":
        made["pooled"] = ((1, spec.layout.get("pooled_dim", 4 * fields.get("channels", 0))), "float32")
    return made
