"""Writes docs/samplers.md: every sampler of the registry with its order, its cost and its error by evaluations.

python -m benchmarks.sampler_table
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import mixture
from jaxdiff import grids, processes, samplers
from jaxdiff.files import write_whole
from jaxdiff.samplers import Sampler, sample

BUDGETS = (10, 20, 40)
NUM = 8192
PROCESS = processes.ddpm_linear()

HEAD = """# Samplers compared

Every sampler of `jaxdiff.samplers` on one problem: a mixture of eight narrow modes in four dimensions
(`benchmarks/mixture.py`), its exact denoiser, the process `ddpm_linear` and the grid `log_snr`. The page is made by
`python -m benchmarks.sampler_table`.

- **order**: of convergence in the number of steps; for a stochastic sampler the weak order, that of the sample's
  moments; 0 where a bias stays that more steps do not take away. Measured by `tests/contracts/test_samplers.py` on a
  grid whose first steps are short: a multistep sampler begins with low order, and on a coarse start that shows.
- **per step**: evaluations of the denoiser (NFE) in one step; the last one, to clean data, costs one.
- **error at 10, 20, 40 NFE**: of a deterministic sampler the mean distance between where a sample ends and where the
  exact probability flow ends from the same noise (the data's modes are 2 or more apart, their standard deviation is
  0.05); of a stochastic one the sliced Wasserstein distance between 8192 samples and the data, {floor:.3f} for two
  exact samples of that size.
- A method that is better on one problem is not better on all. Try yours: `benchmarks/mixture.py` is 40 lines.
"""


def sliced_wasserstein(a: jax.Array, b: jax.Array, directions: int = 64) -> float:
    """The mean over random directions of the Wasserstein-1 distance between the projections of two equal samples."""
    v = np.random.default_rng(2).normal(size=(a.shape[1], directions))
    v = jnp.asarray(v / np.linalg.norm(v, axis=0))
    return float(jnp.mean(jnp.abs(jnp.sort(a @ v, axis=0) - jnp.sort(b @ v, axis=0))))


def settings() -> list[tuple[str, dict[str, Any], bool]]:
    """(name, arguments, stochastic) of every row."""
    return [
        (name, dict(kwargs), entry.stochastic)
        for name, entry in samplers.REGISTRY.items()
        for kwargs in ((), *entry.variants)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(Path(__file__).parents[1] / "docs" / "samplers.md"))
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    data, key = mixture.data(), jax.random.key(0)
    first = jax.tree.map(lambda a: a[0], grids.log_snr(PROCESS, 2))
    clean = PROCESS.at(jnp.inf)
    start = mixture.noise()
    exact = data.flow(start, first, clean)
    many = jax.random.normal(jax.random.key(1), (NUM, mixture.DIM))
    truth, other = (data.sample(jax.random.key(seed), NUM) for seed in (2, 3))

    def error(sampler: Sampler, stochastic: bool, budget: int) -> str:
        if sampler.nfe is None:
            return "-"
        levels = grids.log_snr(PROCESS, mixture.steps_within(budget, sampler.nfe))
        x = many if stochastic else start
        got, _ = sample(data.denoiser(PROCESS), sampler, levels, x, key, max_steps=max(BUDGETS))
        return f"{sliced_wasserstein(got, truth) if stochastic else mixture.distance(got, exact):.2g}"

    lines = [
        HEAD.format(floor=sliced_wasserstein(truth, other)),
        "| sampler | order | per step | stochastic | " + " | ".join(f"{b} NFE" for b in BUDGETS) + " | paper |",
        "|---|" + "---|" * (len(BUDGETS) + 4),
    ]
    for name, kwargs, stochastic in settings():
        sampler = samplers.make(name, **kwargs)
        said = (
            f"`{name}"
            + "".join(f" {k}={v:.3g}" if isinstance(v, float) else f" {k}={v}" for k, v in kwargs.items())
            + "`"
        )
        cost = "adaptive" if sampler.nfe is None else str(sampler.nfe)
        errors = " | ".join(error(sampler, stochastic, budget) for budget in BUDGETS)
        paper = samplers.REGISTRY[name].paper
        link = f"[{paper}](https://arxiv.org/abs/{paper})"
        lines.append(f"| {said} | {sampler.order} | {cost} | {'yes' if stochastic else ''} | {errors} | {link} |")
        print(lines[-1], flush=True)
    write_whole(args.out, ("\n".join(lines) + "\n").encode())
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
