"""Every preset: the size of the original code's network, the size its paper states, and a model that can be built."""

import math
import re

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import build, convert
from jaxdiff.errors import UsageError
from jaxdiff.models import presets

SPECS = presets.REGISTRY


def kind(spec):
    """Presets of one kind differ in numbers alone, not in what is in the network."""
    return (
        spec.network,
        spec.process["name"],
        *sorted(spec.fields),
        *(v for v in spec.fields.values() if type(v) is str),
    )


def first_of_a_kind():
    """Every preset, those marked slow of whose kind there has been one."""
    seen = set()
    for name, spec in SPECS.items():
        yield pytest.param(name, marks=pytest.mark.slow if kind(spec) in seen else ())
        seen.add(kind(spec))


@pytest.mark.parametrize("name", list(first_of_a_kind()))
def test_a_preset_has_as_many_parameters_as_it_says(name):
    counted = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(convert.shapes(SPECS[name])))
    assert counted == SPECS[name].parameters > 0


@pytest.mark.parametrize("name", SPECS)
def test_that_is_the_number_its_paper_rounds(name):
    """To its last digit that is not 0, up or down: OpenAI has 552 million for 552.8."""
    for stated in re.findall(r"(\d+(?:\.\d+)?) million", SPECS[name].reference):
        digits = stated.partition(".")[2]
        unit = 10.0 ** -len(digits) if digits else 10.0 ** (len(stated) - len(stated.rstrip("0")))
        assert abs(SPECS[name].parameters / 1e6 - float(stated)) < unit


def test_the_papers_sizes_are_stated():
    """The test before has something to hold."""
    stated = {name for name, spec in SPECS.items() if "million" in spec.reference}
    openai = {
        "iddpm_imagenet64",
        "adm_64",
        "adm_128",
        "adm_256",
        "adm_512",
        "adm_upsampler_64_256",
        "adm_classifier_64",
    }
    assert stated >= {"ddpm_cifar10", "ddpm_256"} | openai


@pytest.mark.parametrize("name", SPECS)
def test_a_preset_is_a_model(name):
    spec = SPECS[name]
    model = build.model_of(spec)
    assert model.learned_variance == spec.fields.get("learned_variance", False)
    assert model.apply.module.dtype == jnp.float32
    assert bool(jnp.isfinite(model.time_input(model.process(jnp.float32(0.5)))))


@pytest.mark.parametrize(
    ("name", "last"), [("ddpm_cifar10", 999), ("iddpm_cifar10", 999.75), ("iddpm_imagenet64_cond", 3999)]
)
def test_openai_s_networks_are_told_the_time_as_their_code_does(name, last):
    """i, or with "rescaled" timesteps 1000 i / T."""
    model = build.model_of(presets.get(name))
    steps = model.process.num_steps
    assert model.time_input(model.process(jnp.float32([1 / steps, 1]))).tolist() == [0, last]


def test_an_unknown_preset_gets_a_hint():
    with pytest.raises(UsageError, match="unknown preset 'adm256': did you mean 'adm_256'"):
        presets.get("adm256")
