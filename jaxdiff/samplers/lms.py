r"""Linear multistep: Adams-Bashforth with variable steps in rho = sigma / alpha.

    x_nxt / alpha_nxt = x / alpha + sum_j eps_j int_{rho_cur}^{rho_nxt} L_j(rho) d rho,        (1)

L_j being Lagrange's basis on the last p levels: the polynomial through the last p noise predictions, integrated
exactly (`multistep`), so that steps of unequal sizes keep the order p. The first steps have fewer points, which shows
where they are long and the denoiser bends there; the last, to rho = 0,
has no other equation than the rest.

Reference: Crowson. k-diffusion, `sample_lms`. 2022; equal to rho-AB-DEIS of Zhang, Chen. 2023. arXiv:2204.13902.
"""

from dataclasses import dataclass

from jaxdiff.errors import UsageError
from jaxdiff.model import Denoiser
from jaxdiff.samplers.history import State, empty, push
from jaxdiff.samplers.multistep import mix, rho_weights, transfer
from jaxdiff.types import Array, Cond, Level


@dataclass(frozen=True)
class LMS:
    """Linear multistep of order 1 (DDIM) to 4.

    Args:
        order: number of noise predictions the polynomial passes through, and order of convergence, 1 to 4.

    Raises:
        UsageError: for another order.

    Examples:
        >>> LMS().order, LMS(2).nfe
        (4, 1)

    Reference: Crowson. k-diffusion. 2022.
    """

    order: int = 4

    nfe = 1

    def __post_init__(self) -> None:
        if self.order not in (1, 2, 3, 4):
            raise UsageError(f"order={self.order}: allowed is 1, 2, 3 or 4")

    def init(self, x: Array) -> State:
        return State(x, empty(x, self.order))

    def step(self, denoise: Denoiser, state: State, cur: Level, nxt: Level, key: Array, cond: Cond) -> State:
        x0, eps, _ = denoise(state.x, cur, cond)
        history = push(state.history, eps, cur)
        change = mix(rho_weights(history, cur, nxt), history.values)
        return State(transfer(x0, eps, change, cur, nxt), history)
