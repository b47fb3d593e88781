"""Objectives at zero terminal SNR, where the log-SNR is -inf."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import prediction, processes
from jaxdiff.model import Model
from jaxdiff.objectives import SNR, ContinuousELBO, Denoising, DiscreteELBO, SlicedScoreMatching, SoftMinSNR, make

pytestmark = pytest.mark.usefixtures("quick_compile")
TABLE = processes.zero_terminal_snr(processes.ddpm_linear(4))
FLOW = processes.rectified_flow()


@pytest.mark.parametrize(
    ("process", "objective"),
    [
        (FLOW, DiscreteELBO(4)),
        (processes.cosine(), DiscreteELBO(4)),
        (TABLE, DiscreteELBO()),
        (TABLE, SlicedScoreMatching()),
        (TABLE, SlicedScoreMatching(weight=SoftMinSNR())),
        (TABLE, Denoising()),
    ],
)
def test_loss_and_gradient_are_finite(process, objective):
    def network(params, x, t, cond, *, train=False, rngs=None):
        return params * x

    model = Model(network, process, prediction.V)
    batch = {"x0": jnp.ones((64, 2))}
    keys = jax.random.split(jax.random.key(0), 64)  # every step among them
    value, slope = jax.value_and_grad(lambda p: objective(model, p, batch, keys)[0].mean())(jnp.float32(0.5))
    assert np.isfinite(value)
    assert np.isfinite(slope)


def test_a_config_gets_the_objectives_own_times_and_weight():
    assert make(name="elbo") == ContinuousELBO()
    assert make(name="sliced_score").weight == SNR()
