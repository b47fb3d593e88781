"""What every network asks of its fields and of what it is called with, in one form and in one line."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.errors import UsageError
from jaxdiff.models import REGISTRY
from jaxdiff.models.fields import (
    NUMBER,
    PART,
    POSITIVE,
    RATE,
    check_fields,
    each,
    input_of,
    label_of,
    one_or_each,
    optional,
    whole,
)

LISTS = {
    "unet": {"channel_mult": [1, 2], "attention_levels": [[1], []], "num_res_blocks": [1, 2], "fir": [1, 3, 3, 1]},
    "classifier": {"attention_resolutions": [4, 2], "downsample": ["pool", "conv", "conv", "conv"]},
    "dit": {"patch_size": [1, 2]},
    "uvit": {"patch_size": [1, 2]},
    "edm2": {"channel_mult": [1, 2], "attention_resolutions": [4]},
    "refinenet": {"channel_mult": [1, 2], "dilations": [1, 2]},
    "mlp": {},
}


def frozen(value):
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def refused(name, text, **fields):
    with pytest.raises(UsageError, match=text) as e:
        REGISTRY[name](**fields)
    assert "allowed" in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(("rule", "good", "wrong"), [
    (whole(1), [1, 7], [0, -1, 1.0, True, "1", None, (1,)]),
    (NUMBER, [0, -1.5, 2], [True, "1", None]),
    (POSITIVE, [1, 0.1], [0, -0.1, float("nan"), True, "1", None]),
    (RATE, [0, 0.0, 0.99], [1.0, -0.1, float("nan"), False, "0.5"]),
    (PART, [0, 1, 0.5], [1.1, -0.1, True, None]),
    (optional(whole(1)), [None, 1], [0, False]),
    (each(whole(1)), [(), (1, 2)], [1, (1, 0), "1", None]),
    (one_or_each(whole(1)), [1, (1, 2)], [(), 0, (1, 0), "1", None]),
])  # fmt: skip
def test_rules(rule, good, wrong):
    assert [rule.good(value) for value in (*good, *wrong)] == [True] * len(good) + [False] * len(wrong)


@pytest.mark.parametrize("name", REGISTRY)
def test_fields_of_one_meaning_are_equal(name):
    given = REGISTRY[name](**LISTS[name], dtype="bfloat16")
    want = REGISTRY[name](**{field: frozen(value) for field, value in LISTS[name].items()}, dtype=jnp.bfloat16)
    assert given == want
    assert hash(given) == hash(want)
    assert given.dtype == jnp.dtype("bfloat16")


@pytest.mark.parametrize("name", REGISTRY)
def test_what_no_network_takes(name):
    refused(name, "dtype is int8", dtype="int8")
    refused(name, "dtype is int32", dtype=jnp.int32)
    refused(name, "dtype is 'float33'", dtype="float33")
    refused(name, "dtype is None", dtype=None)
    refused(name, "num_classes is -1", num_classes=-1)
    for field in dataclasses.fields(REGISTRY[name]):
        if field.name == "out_channels":
            refused(name, "out_channels is 0: allowed is None or a whole number, 1 or more", out_channels=0)
        if field.name == "dropout":
            refused(name, "dropout is 1.0: allowed is a rate", dropout=1.0)


@dataclasses.dataclass(frozen=True)
class Plain:
    """Without the run-time checks of annotations that the library is under in tests."""

    rate: float = 0.1
    on: bool = True
    names: str | list[str] = "a"
    dtype: Any = "float32"


@pytest.mark.parametrize(("fields", "text"), [
    ({"rate": "0.1"}, "rate is '0.1': allowed is a rate"),
    ({"on": 1}, "on is 1: allowed is True or False"),
    ({"names": ["a", "bb"]}, "unknown names 'bb': did you mean 'b'"),
    ({"dtype": {"a": 1}}, "dtype is"),
])  # fmt: skip
def test_values_of_another_type(fields, text):
    with pytest.raises(UsageError, match=text) as e:
        check_fields(Plain(**fields), {"rate": RATE}, {"names": ("a", "b")})
    assert "\n" not in str(e.value)
    check_fields(Plain(names=["a", "b"]), {"rate": RATE}, {"names": ("a", "b")})


@pytest.mark.parametrize(("shape", "halvings"), [((2, 3), 0), ((2, 6, 3), 2), ((2, 4, 0, 3), 0), ((2, 8, 7, 3), 1)])
def test_inputs_that_do_not_fit(shape, halvings):
    with pytest.raises(UsageError, match=r"(shape|size) of x is .*: allowed is") as e:
        input_of(np.zeros(shape), halvings)
    assert "\n" not in str(e.value)
    assert input_of(np.zeros((2, 4, 8, 3)), 2).shape == (2, 4, 8, 3)


def test_labels():
    assert label_of({"label": jnp.array([1, 2])}, 2, 5).tolist() == [1, 2]
    assert label_of({"context": None}, 2, 5).tolist() == [5, 5]
    for wrong in (jnp.zeros(2), jnp.zeros(3, int), jnp.zeros((2, 1), int)):
        with pytest.raises(UsageError, match=r"cond\['label'\] is .*allowed"):
            label_of({"label": wrong}, 2, 5)
