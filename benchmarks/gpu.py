"""The rows for an accelerator: large networks in bfloat16, as images a second and as a share of the matrix rate."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.sides import COMPILED, EAGER, JAX, PLAIN, Measured, Sides, flops_of, number, table
from benchmarks.timing import Spread


@dataclass(frozen=True)
class GPURow:
    """One network on one device.

    Args:
        name: for `--rows`.
        net: a key of `peers.NETS`.
        what: forward or train.
        batch: examples.
        dispatch: training steps in one call of a compiled program (PyTorch makes as many calls).
    """

    name: str
    net: str
    what: str
    batch: int
    dispatch: int = 1

    @property
    def job(self) -> dict:
        """The job of `peers`."""
        calls = max(1, 16 // self.dispatch) if self.what == "train" else 32
        return {
            "net": self.net, "what": self.what, "batch": self.batch, "dtype": "bfloat16", "steps": 0,
            "dispatch": self.dispatch, "calls": calls,
        }  # fmt: skip


ROWS = (
    GPURow("gpu-ddpm-forward", "ddpm_cifar10", "forward", 256),
    GPURow("gpu-ddpm-train", "ddpm_cifar10", "train", 128),
    GPURow("gpu-ddpm-train-8", "ddpm_cifar10", "train", 128, dispatch=8),
    GPURow("gpu-adm64-forward", "adm_64", "forward", 128),
    GPURow("gpu-adm64-train", "adm_64", "train", 64),
    GPURow("gpu-adm256-forward", "adm_256", "forward", 16),
    GPURow("gpu-adm256-train", "adm_256", "train", 8),
    GPURow("gpu-dit-forward", "dit_b_2", "forward", 256),
    GPURow("gpu-dit-train", "dit_b_2", "train", 256),
    GPURow("gpu-dit-train-8", "dit_b_2", "train", 256, dispatch=8),
)
# Large enough for the device's full rate in bfloat16.
MATRIX = {"what": "matmul", "batch": 8192, "dtype": "bfloat16", "calls": 50}


def gpu_rows(sides: Sides | None, rows: list[GPURow], repeats: int, say: Callable[[str], None]) -> list[str]:
    """The accelerator's table; every cell "not measured" without one."""
    head = [
        "bfloat16", "ours, images/s", "compiled PyTorch, images/s", "ratio of times", "MFU, ours / theirs",
        "peak GiB, ours / theirs", "compile s, ours / theirs",
    ]  # fmt: skip
    title = {row.name: f"{row.net} {row.what}, B={row.batch}" + f", {row.dispatch} steps a call" * (row.dispatch > 1)
             for row in rows}  # fmt: skip
    if sides is None:
        return table(head, [[title[row.name], *["not measured"] * (len(head) - 1)] for row in rows])
    say("matrix rate")
    product = sides.measure(MATRIX, PLAIN, repeats)
    rates = {side: product.rate(side, 2.0 * MATRIX["batch"] ** 3) for side in PLAIN}  # type: ignore[operator]
    peak = max((rate for rate in rates.values() if rate), default=None)
    lines = []
    for row in rows:
        say(title[row.name])
        made = sides.measure(row.job, (JAX, COMPILED), repeats)
        images, work = row.batch * row.dispatch, flops_of(made, row.dispatch)

        def rate(side: str, made: Measured = made, images: int = images) -> str:
            return (
                f"{Spread.of(images / s for s in made.seconds[side]):.4g}" if side in made.seconds else made.time(side)
            )

        def used(side: str, made: Measured = made, work: float | None = work) -> str:
            got = made.rate(side, work)
            return f"{got / peak:.0%}" if got and peak else "-"

        lines.append(
            [title[row.name], rate(JAX), rate(COMPILED), made.ratio(JAX, COMPILED), f"{used(JAX)} / {used(COMPILED)}",
             " / ".join(number(made.info.get(side, {}).get("peak_bytes"), 2**30, ".2f") for side in (JAX, COMPILED)),
             " / ".join(number(made.info.get(side, {}).get("compile_s"), 1, ".1f") for side in (JAX, COMPILED))]
        )  # fmt: skip
        say("    " + " | ".join(lines[-1][1:]))
    note = f"Matrix rate (8192 x 8192 in bfloat16): jaxdiff {number(rates[JAX], 1e12)}, PyTorch "
    return [*table(head, lines), "", note + f"{number(rates[EAGER], 1e12)} TFLOP/s; MFU is against the greater."]
