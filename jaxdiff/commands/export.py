"""A checkpoint's parameters as a model of its own: what the network is, and safetensors."""

import time
from pathlib import Path

from jaxdiff import build, convert
from jaxdiff.commands.sample import load_run
from jaxdiff.errors import UsageError
from jaxdiff.train.run import AVERAGE


def export(workdir: Path, out: Path, *, checkpoint: str = "latest", ema: bool = True) -> int:
    """Write a run's model as a folder, `model.json` and `params.safetensors`, that `jaxdiff.convert.load` reads.

    Args:
        workdir: the run's folder.
        out: the folder to write; must not be there, or be empty.
        checkpoint: "latest", "best", or a step.
        ema: the averaged parameters, which sample better, rather than the last ones.

    Returns:
        0.

    Raises:
        UsageError: for anything that does not fit; nothing is written then.
    """
    convert.check_target(out, "native")
    if out.exists() and any(out.iterdir()):
        raise UsageError(f"{out} is there already: give another place to write to")
    began = time.perf_counter()
    config, _, params = load_run(workdir, checkpoint, f"ema/{AVERAGE}" if ema else "params")
    convert.save(out, build.spec(config), params)
    size = sum(path.stat().st_size for path in out.iterdir())
    print(f"wrote {out} ({'averaged' if ema else 'last'} parameters, {size / 1e6:,.1f} MB, "
          f"{time.perf_counter() - began:.1f} s)")  # fmt: skip
    return 0
