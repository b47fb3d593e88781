"""Our samplers against diffusers' schedulers: distance to the exact probability flow by number of evaluations.

    pip install diffusers torch && python -m benchmarks.solvers          # prints, and writes benchmarks/solvers.md

Both sides start from the same noise, ask the same exact denoiser in float64 and are told the same noise levels, those
the scheduler of diffusers chose itself, so that a row compares the two algorithms and nothing else. A budget of
evaluations buys as many steps as fit into it, first steps that cost more included. The last table gives each side its
best over everything it has: samplers and noise levels.
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import mixture
from jaxdiff import grids, processes, samplers
from jaxdiff.files import write_whole
from jaxdiff.process import ForwardProcess, stack
from jaxdiff.samplers import Sampler, sample
from jaxdiff.types import Level

BUDGETS = (5, 10, 20, 40)
SLACK = 1.1
DDPM, EDM = processes.ddpm_linear(), processes.edm()


@dataclass(frozen=True)
class Pair:
    """A scheduler of diffusers and the sampler of ours that has its name.

    With `own_levels` ours takes, between the same ends, the better of two grids: every other (third) level of the
    scheduler's, and the paper's, equal in log-SNR. The singlestep scheduler of diffusers puts its inner stages on its
    grid, the paper's solver between the levels, so that the same levels cannot be given to both.
    """

    name: str
    scheduler: str
    options: dict[str, Any]
    sampler: Callable[[], Sampler]
    process: ForwardProcess = DDPM
    own_levels: bool = False


def _pairs() -> list[Pair]:
    make = samplers.make
    zero, trailing = {"final_sigmas_type": "zero"}, {"timestep_spacing": "trailing"}
    found = [
        Pair("DDIM", "DDIMScheduler", {"clip_sample": False, **trailing}, lambda: make("ddim")),
        Pair(
            "PNDM",
            "PNDMScheduler",
            {"skip_prk_steps": True, "set_alpha_to_one": True},
            lambda: make("pndm"),
        ),
        Pair("Euler", "EulerDiscreteScheduler", {}, lambda: make("euler")),
        Pair("Heun", "HeunDiscreteScheduler", {}, lambda: make("heun")),
        Pair("LMS", "LMSDiscreteScheduler", {}, lambda: make("lms")),
        Pair("EDM Euler", "EDMEulerScheduler", {}, lambda: make("euler"), EDM),
    ]
    for order in (1, 2, 3):
        found.append(
            Pair(
                f"DPM-Solver-{order} singlestep",
                "DPMSolverSinglestepScheduler",
                {"solver_order": order, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"},
                lambda order=order: make("dpm_solver", order=order),
                own_levels=order > 1,
            )
        )
    found.append(
        Pair("DPM-Solver++(2S)", "DPMSolverSinglestepScheduler", {"solver_order": 2, **zero}, lambda: make("dpmpp_2s"))
    )
    for name, options in (("", {}), (" Karras", {"use_karras_sigmas": True}), (" lu", {"use_lu_lambdas": True})):
        for order in (2, 3):
            found.append(
                Pair(
                    f"DPM-Solver++({order}M){name}",
                    "DPMSolverMultistepScheduler",
                    {"solver_order": order, **options},
                    lambda order=order: make(f"dpmpp_{order}m"),
                )
            )
    for order in (1, 2, 3):
        for kind in ("bh1", "bh2"):
            found.append(
                Pair(
                    f"UniPC-{order} {kind}",
                    "UniPCMultistepScheduler",
                    {"solver_order": order, "solver_type": kind, **zero},
                    lambda order=order, kind=kind: make("unipc", solver_order=order, variant=kind),
                )
            )
        found.append(
            Pair(
                f"DEIS-{order}",
                "DEISMultistepScheduler",
                {"solver_order": order},
                lambda order=order: make("deis", order=order, variable="log_rho"),
            )
        )
        if order > 1:
            found.append(
                Pair(
                    f"EDM DPM-Solver++({order}M)",
                    "EDMDPMSolverMultistepScheduler",
                    {"solver_order": order},
                    lambda order=order: make(f"dpmpp_{order}m"),
                    EDM,
                )
            )
    return found


class Peer:
    """One run of a scheduler of diffusers, with the exact denoiser for its model."""

    def __init__(self, pair: Pair, steps: int) -> None:
        import diffusers

        made = getattr(diffusers, pair.scheduler)
        table = {} if pair.process is EDM else {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
        self.scheduler = made(**table, **pair.options)
        self.scheduler.set_timesteps(steps)
        self.process = pair.process
        # A sigma of theirs is our sigma / alpha, whatever space their sample lives in.
        sigmas = getattr(self.scheduler, "sigmas", None)
        if sigmas is None:
            bar = np.asarray(self.scheduler.alphas_cumprod, np.float64)[np.asarray(self.scheduler.timesteps)]
            self.sigmas = np.append(np.sqrt((1 - bar) / bar), 0.0)
        else:
            self.sigmas = np.asarray(sigmas, np.float64)
        self.nfe = len(self.scheduler.timesteps)

    @property
    def exploding(self) -> bool:
        """Whether their sample is x0 + sigma eps, and not of unit variance."""
        name = type(self.scheduler).__name__
        return name.startswith(("Euler", "Heun", "LMS", "EDM"))

    def levels(self) -> Level:
        """The levels of its steps, for ours: clean last, each once."""
        with np.errstate(divide="ignore"):
            log_snr = -2 * np.log(self.sigmas)
        keep = np.append(True, np.diff(log_snr) > 0)
        return stack(self.process.at(log_snr[keep]))

    def run(self, denoise: Callable, start: np.ndarray) -> np.ndarray:
        import torch

        self.scheduler.set_begin_index(0) if hasattr(self.scheduler, "set_begin_index") else None
        x = torch.from_numpy(start if self.exploding else start / np.sqrt(1 + self.sigmas[0] ** 2))
        for i, t in enumerate(self.scheduler.timesteps):
            sigma = self.sigmas[i]
            alpha = 1.0 if self.exploding else 1 / np.sqrt(1 + sigma**2)
            x0, eps = (np.asarray(a) for a in denoise(x.numpy() / alpha, sigma))
            if type(self.scheduler).__name__.startswith("EDM"):
                # Their model is EDM's F: the output behind c_skip and c_out.
                data2 = self.scheduler.config.sigma_data**2
                skip, out = data2 / (sigma**2 + data2), sigma * np.sqrt(data2 / (sigma**2 + data2))
                output = (x0 - skip * x.numpy()) / out
                self.scheduler.scale_model_input(x, t)
            else:
                output = eps
                if hasattr(self.scheduler, "scale_model_input"):
                    self.scheduler.scale_model_input(x, t)
            x = self.scheduler.step(torch.from_numpy(output), t, x).prev_sample
        return x.numpy()


def steps_for(pair: Pair, budget: int) -> Peer:
    """The scheduler with the most steps whose evaluations fit the budget."""
    fitting = [peer for steps in range(1, budget + 1) if (peer := _try(pair, steps)) and peer.nfe <= budget]
    return fitting[-1]


def _try(pair: Pair, steps: int) -> Peer | None:
    try:
        return Peer(pair, steps)
    except (ValueError, IndexError):
        return None  # too few steps for this scheduler


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=str(Path(__file__).with_suffix(".md")), help="where the tables are written")
    parser.add_argument("--only", default="", help="compare only the schedulers whose name has this in it")
    args = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    data, z = mixture.data(), mixture.noise()
    exact_at = jax.jit(lambda y, sigma: data.denoiser(EDM)(y, EDM.at(-2 * jnp.log(sigma)))[:2])
    clean = jax.tree.map(lambda a: a[-1], grids.explicit(DDPM, [1.0, 0.0]))

    def truth(process: ForwardProcess, start: jax.Array, first: Level) -> jax.Array:
        return data.flow(start, first, clean)

    def row(levels: Level) -> Level:
        return jax.tree.map(lambda a: a[0], levels)

    rows = []
    best: dict[str, dict[int, tuple[float, str]]] = {"ours": {}, "diffusers": {}}

    def note(side: str, budget: int, value: float, name: str) -> None:
        if value < best[side].get(budget, (np.inf, ""))[0]:
            best[side][budget] = (value, name)

    for pair in (pair for pair in _pairs() if args.only in pair.name):
        cells = []
        for budget in BUDGETS:
            peer = steps_for(pair, budget)
            levels, sampler = peer.levels(), pair.sampler()
            first = row(levels)
            ratio = float(first.sigma / first.alpha)
            start = np.asarray(z) * (ratio if peer.exploding else np.sqrt(1 + ratio**2))
            x = first.alpha * start
            exact = truth(pair.process, x, first)
            theirs = mixture.distance(peer.run(exact_at, start), exact)
            # As many of their levels as our evaluations can pay for, the same number where the cost is the same.
            choices = two_grids(pair.process, levels) if pair.own_levels else [levels]
            ours, spent = np.inf, 0
            for choice in choices:
                grid, cost = affordable(pair.process, choice, sampler.nfe, budget)
                got, _ = sample(data.denoiser(pair.process), sampler, grid, x, jax.random.key(0), max_steps=budget)
                ours, spent = min((ours, spent), (mixture.distance(got, exact), cost))
            cells.append((ours, theirs, spent, peer.nfe))
            if pair.process is DDPM:
                note("diffusers", budget, theirs, pair.name)
                note("ours", budget, ours, f"{pair.name} on its levels")
        rows.append((pair, cells))
        print(f"{pair.name:26}", "  ".join(f"{o:.2e}/{t:.2e} ({a}/{b})" for o, t, a, b in cells), flush=True)

    first = row(grids.uniform(DDPM, 2))
    x = jnp.asarray(z)
    exact = truth(DDPM, x, first)
    for name, entry in samplers.REGISTRY.items():
        if entry.stochastic or entry.nfe is None:
            continue
        for kwargs in ((), *entry.variants):
            sampler = samplers.make(name, **dict(kwargs))
            for grid in ("uniform", "log_snr", "karras"):
                for budget in BUDGETS:
                    levels = grids.make(grid, DDPM, mixture.steps_within(budget, sampler.nfe))
                    if float(levels.log_snr[0]) != float(first.log_snr):
                        continue
                    got, _ = sample(data.denoiser(DDPM), sampler, levels, x, jax.random.key(0), max_steps=budget)
                    note("ours", budget, mixture.distance(got, exact), f"{sampler} on {grid}")
    write_whole(args.out, report(rows, best).encode())
    print(f"wrote {args.out}")


def two_grids(process: ForwardProcess, levels: Level) -> list[Level]:
    """The noisy levels, and as many equal in log-SNR between their ends; both then to clean data."""
    log_snr = np.asarray(levels.log_snr, np.float64)
    noisy = log_snr[np.isfinite(log_snr)]
    equal = np.linspace(noisy[0], noisy[-1], len(noisy))
    # Theirs ends at the least noise of the table, after a last step that ours has no use for.
    return [stack(process.at(np.append(rows, np.inf))) for rows in (noisy[:-1], equal)]


def affordable(process: ForwardProcess, levels: Level, nfe: int, budget: int) -> tuple[Level, int]:
    """The levels, or as many of them as the budget pays for, evenly in their order with both ends; what they cost."""
    log_snr = np.asarray(levels.log_snr, np.float64)
    noisy = log_snr[np.isfinite(log_snr)]
    clean = len(noisy) < len(log_snr)
    rows = min(len(noisy), mixture.steps_within(budget, nfe) if clean else budget // nfe + 1)
    noisy = np.interp(np.linspace(0, len(noisy) - 1, rows), np.arange(len(noisy)), noisy)
    spent = (rows - 1) * nfe + clean
    return stack(process.at(np.append(noisy, np.inf) if clean else noisy)), spent


def report(rows: list, best: dict) -> str:
    """The tables, in Markdown."""
    import diffusers

    lines = [
        f"# Distance to the exact flow: jaxdiff and diffusers {diffusers.__version__}",
        "",
        f"Mean Euclidean distance of {mixture.NUM} samples to the end of the exact probability flow from the same",
        "noise, in float64, with the same exact denoiser, on the noise levels that diffusers' scheduler chose; in",
        "brackets the evaluations each side spent. Made by `python -m benchmarks.solvers`.",
        "",
        "| ours / theirs | " + " | ".join(f"NFE {b}" for b in BUDGETS) + " | no worse |",
        "|---|" + "---|" * (len(BUDGETS) + 1),
    ]
    for pair, cells in rows:
        fair = all(np.isnan(theirs) or ours <= SLACK * theirs for ours, theirs, *_ in cells)
        shown = [f"{o:.3g} ({a}) / {t:.3g} ({b})" for o, t, a, b in cells]
        lines.append(
            f"| {pair.name}{' *' if pair.own_levels else ''} | " + " | ".join(shown) + f" | {'yes' if fair else 'NO'} |"
        )
    lines += [
        "",
        "\\* ours on the better of two grids between the same ends, every other (third) level of theirs or equal steps",
        "in log-SNR: their singlestep scheduler has its inner stages on its grid, the paper's between its levels",
        "(that scheduler also ends at the table's least noise, 0.01, not at clean data).",
        "",
        "The best of each side on `ddpm_linear`, any sampler, any grid:",
        "",
        "| NFE | ours | diffusers |",
        "|---|---|---|",
    ]
    for budget in BUDGETS:
        (ours, name), (theirs, other) = (best[side].get(budget, (np.inf, "")) for side in ("ours", "diffusers"))
        lines.append(f"| {budget} | {ours:.3g} ({name}) | {theirs:.3g} ({other}) |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
