"""Look at a config without training: its forward process in pictures."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from jaxdiff import build, pictures, processes
from jaxdiff.config import check
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole
from jaxdiff.numerics import batch_keys, normal_like
from jaxdiff.process import q_sample

_COLUMNS, _FRAMES = 11, 40


def forward(config: ConfigDict, out: Path, *, num: int = 8) -> int:
    """Write `out`.png (images by row, time by column), `out`.gif, and `out`_schedules.png (linear against cosine).

    Args:
        config: a whole config.
        out: path without ending.
        num: number of images.

    Raises:
        UsageError: for a config or a data set that does not fit.
    """
    check(config)
    if num < 1:
        raise UsageError(f"num={num}: allowed is 1 or more")
    process, source = build.process(config), build.source(config, config.data.split)
    num = min(num, len(source))
    images = np.stack([source[i]["image"] for i in range(num)])
    x0 = jnp.asarray(images, jnp.float32) / 127.5 - 1
    eps = normal_like(batch_keys(jax.random.key(config.seed), num), x0)

    def moment(t: float) -> np.ndarray:
        return np.asarray(pictures.visible(q_sample(process, x0, jnp.float32(t), eps), process(jnp.float32(t))))

    out = out.with_suffix("") if out.suffix in (".png", ".gif") else out
    table = np.stack([moment(t) for t in np.linspace(0, 1, _COLUMNS)], axis=1)
    frames = [pictures.grid(moment(t)) for t in np.linspace(0, 1, _FRAMES)]
    compared = {"linear": processes.ddpm_linear(), "cosine": processes.ddpm_cosine()}
    if process not in compared.values():
        compared[config.process.name] = process
    written = [
        write_whole(f"{out}.png", pictures.png(pictures.grid(table.reshape(-1, *images.shape[1:]), _COLUMNS))),
        write_whole(f"{out}.gif", pictures.gif(frames)),
        write_whole(f"{out}_schedules.png", pictures.schedules(compared)),
    ]
    print(f"{config.process.name}, {num} images: " + ", ".join(str(path) for path in written))
    return 0
