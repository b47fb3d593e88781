"""Export a trained run's sampler as one file that draws images with jax and flatbuffers alone (`jaxdiff.aot`)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jax

from jaxdiff import build
from jaxdiff.aot import export_sampler, load_sampler
from jaxdiff.commands.sample import load_run
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole
from jaxdiff.model import Index

_USE = """\
with this library:    jaxdiff.aot.load_sampler("{out}")(seed=0, num=16{given})
with jax and flatbuffers alone (pip install jax flatbuffers):
  import jax, jax.export, numpy
  file = numpy.load("{out}")
  program = jax.export.deserialize(bytearray(file["program"].tobytes()))
  params = [file[f"p{{i}}"] for i in range(len(file.files) - 2)]
  images = jax.jit(program.call)(params, numpy.uint32(0), numpy.arange({batch}, dtype="uint32"), {cond})"""


def compile_run(
    workdir: Path,
    out: Path,
    *,
    batch_size: int = 0,
    platforms: Sequence[str] | None = None,
    between: bool = False,
    checkpoint: str = "latest",
    overrides: Mapping[str, Any] = MappingProxyType({}),
) -> int:
    """Write `out`. See `jaxdiff compile --help` for the arguments.

    Raises:
        UsageError: for anything that does not fit; nothing is written then.
    """
    if batch_size < 0:
        raise UsageError(f"batch_size={batch_size}: allowed is 1 or more, or 0 for any")
    if out.is_dir():
        raise UsageError(f"--out={out}: this is a folder, a file's name is needed")
    out.parent.mkdir(parents=True, exist_ok=True)  # fails now rather than after the work
    config, model, params = load_run(workdir, checkpoint)
    if overrides.get("sampler", config.sample.sampler) != config.sample.sampler:
        config.sample.sampler_args = {}
    config.sample.update(overrides)
    if between and isinstance(model.time_input, Index):
        model = replace(model, time_input=replace(model.time_input, between=True))
    classes = config.data.num_classes
    data = export_sampler(
        model,
        params,
        sampler=build.sampler(config),
        levels=build.levels(config, model.process),
        shape=build.shape(config),
        cond={"label": jax.ShapeDtypeStruct((), "int32")} if classes else None,
        transforms=build.transforms(config),
        batch=batch_size or None,
        platforms=platforms or None,
    )
    write_whole(out, data)
    about = load_sampler(data).about
    batch = batch_size or 16
    label = f'{{"label": numpy.zeros({batch}, "int32")}}'
    print(f"{out}: {about['sampler']}, {about['steps']} steps, {len(data) / 2**20:.1f} MiB, {about['platforms']}")
    given = ', cond={"label": numpy.zeros(16, "int32")}' if classes else ""
    print(_USE.format(out=out, given=given, batch=batch, cond=label if classes else "{}"))
    return 0
