"""The commands: what each is for, its flags, and what it calls; its imports wait until it runs."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from absl import flags

from jaxdiff.config import check
from jaxdiff.errors import UsageError


def required(values: flags.FlagValues, name: str) -> Any:
    """The value of a flag that has no default.

    Raises:
        UsageError: if it was not given.
    """
    value = values[name].value
    if value is None or value == "":
        raise UsageError(f"--{name} is missing: see 'jaxdiff COMMAND --help'")
    return value


@dataclass(frozen=True)
class Command:
    """A command: what it is for, its flags, what it does with them (the exit code), the arguments it takes without a
    flag, which `run` gets after the flags, and whether it takes a config."""

    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[..., int]
    arguments: tuple[str, ...] = ()
    config: bool = False


def _no_flags(values: flags.FlagValues) -> None:
    pass


def _train_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run; the same one again goes on", flag_values=values)
    flags.DEFINE_string("wandb", "", "also log to this project of Weights & Biases", flag_values=values)
    flags.DEFINE_string("profile", None, "steps to run under JAX's profiler, such as 10:20", flag_values=values)
    flags.DEFINE_string("coordinator", "", "host:port of process 0, where several are not found", flag_values=values)
    flags.DEFINE_integer("num_processes", 0, "how many processes there are", flag_values=values)
    flags.DEFINE_integer("process_id", -1, "which one this is, from 0", flag_values=values)


def _train(values: flags.FlagValues) -> int:
    from jaxdiff.train import distributed

    given: dict[str, Any] = values.flag_values_dict()
    config, workdir = required(values, "config"), required(values, "workdir")
    check(config)
    joined = {name: given[name] for name in ("coordinator", "num_processes", "process_id")}
    distributed.start(**joined, heartbeat=config.train.heartbeat)
    with distributed.ends_all():
        from jaxdiff import build
        from jaxdiff.train.loop import train
        from jaxdiff.train.profile import span

        run = build.run(config)
        profile = span(given["profile"]) if given["profile"] else (0, 0)
        return train(replace(run, profile=profile, wandb=given["wandb"]), workdir)


def _sample_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("weights", None, "instead: what 'jaxdiff export' or 'convert' wrote", flag_values=values)
    flags.DEFINE_string("out", None, "writes OUT.png (grid), OUT.npz (images, labels), OUT.gif", flag_values=values)
    flags.DEFINE_integer("num", 100, "number of images", flag_values=values)
    flags.DEFINE_integer("seed", 0, "the same seed gives the same images, whatever --num", flag_values=values)
    flags.DEFINE_list("labels", None, "class labels, in turn: 0,1,2; by default all classes", flag_values=values)
    flags.DEFINE_integer("batch_size", 128, "images computed at once", flag_values=values)
    _sampler_flags(values)


def _sample(values: flags.FlagValues) -> int:
    from jaxdiff.commands.sample import sample_run

    given: dict[str, Any] = values.flag_values_dict()
    spec = {name: given[name] for name in ("num", "seed", "labels", "between", "batch_size", "checkpoint")}
    return sample_run(
        _path(given["workdir"]), Path(required(values, "out")), weights=_path(given["weights"]),
        overrides=_overrides(given), **spec,
    )  # fmt: skip


def _forward_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "writes OUT.png, OUT.gif and OUT_schedules.png", flag_values=values)
    flags.DEFINE_integer("num", 8, "number of images", flag_values=values)


def _forward(values: flags.FlagValues) -> int:
    from jaxdiff.commands.forward import forward

    return forward(required(values, "config"), Path(required(values, "out")), num=values.flag_values_dict()["num"])


def _info(values: flags.FlagValues) -> int:
    from jaxdiff.commands.info import info

    return info(required(values, "config"))


def _sampler_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("sampler", None, "sampler by name; by default the config's", flag_values=values)
    flags.DEFINE_integer("steps", None, "sampler steps; by default the config's", flag_values=values)
    flags.DEFINE_string("grid", None, "time grid by name; by default the config's", flag_values=values)
    flags.DEFINE_float("guidance", None, "guidance scale, 1 = off; by default the config's", flag_values=values)
    flags.DEFINE_bool("between", False, "also ask a network of row indices between its rows", flag_values=values)
    flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step", flag_values=values)


def _overrides(given: dict[str, Any]) -> dict[str, Any]:
    return {name: given[name] for name in ("sampler", "steps", "grid", "guidance") if given[name] is not None}


def _compile_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("out", None, "the file to write, an .npz", flag_values=values)
    flags.DEFINE_integer("batch_size", 0, "images per call; 0 leaves it open", flag_values=values)
    flags.DEFINE_list("platforms", None, "where it is to run: cpu,cuda,tpu; by default here", flag_values=values)
    _sampler_flags(values)


def _compile(values: flags.FlagValues) -> int:
    from jaxdiff.commands.compile import compile_run

    given: dict[str, Any] = values.flag_values_dict()
    spec = {name: given[name] for name in ("batch_size", "platforms", "between", "checkpoint")}
    workdir, out = Path(required(values, "workdir")), Path(required(values, "out"))
    return compile_run(workdir, out, overrides=_overrides(given), **spec)


def _convert_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("preset", None, "which model a file of weights is: docs/convert.md", flag_values=values)
    flags.DEFINE_string("to", "native", "native, diffusers, openai, edm, score_sde, ...", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace what is in DST", flag_values=values)


def _convert(values: flags.FlagValues, src: str, dst: str) -> int:
    from jaxdiff.commands.convert import convert

    given: dict[str, Any] = values.flag_values_dict()
    return convert(Path(src), Path(dst), **{name: given[name] for name in ("preset", "to", "overwrite")})


def _data_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "writes a grid of images to OUT.png; by default none", flag_values=values)
    flags.DEFINE_float("seconds", 5.0, "how long the pipeline is timed", flag_values=values)


def _data(values: flags.FlagValues) -> int:
    from jaxdiff.commands.data import data

    given: dict[str, Any] = values.flag_values_dict()
    return data(required(values, "config"), out=_path(given["out"]), seconds=given["seconds"])


def _checkpoints_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_bool("verify", False, "read every one and hold it against its checksums", flag_values=values)
    flags.DEFINE_string("compare", None, "two of them, A,B: latest, best, or a step", flag_values=values)


def _checkpoints(values: flags.FlagValues, folder: str) -> int:
    from jaxdiff.commands.checkpoints import checkpoints

    given: dict[str, Any] = values.flag_values_dict()
    return checkpoints(Path(folder), verify=given["verify"], compare=given["compare"])


def _export_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of a trained run", flag_values=values)
    flags.DEFINE_string("out", None, "folder to write: params.safetensors, model.json", flag_values=values)
    flags.DEFINE_string("checkpoint", "latest", "latest, best, or a step", flag_values=values)
    flags.DEFINE_bool("ema", True, "the averaged parameters, rather than the last ones", flag_values=values)


def _export(values: flags.FlagValues) -> int:
    from jaxdiff.commands.export import export

    given: dict[str, Any] = values.flag_values_dict()
    workdir, out = Path(required(values, "workdir")), Path(required(values, "out"))
    return export(workdir, out, checkpoint=given["checkpoint"], ema=given["ema"])


def _report_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of a run, trained or in training", flag_values=values)
    flags.DEFINE_string("out", None, "file to write; by default report.html there", flag_values=values)


def _report(values: flags.FlagValues) -> int:
    from jaxdiff.commands.report import report

    return report(Path(required(values, "workdir")), _path(values.flag_values_dict()["out"]))


def _path(given: str | None) -> Path | None:
    return Path(given) if given else None


COMMANDS = {
    "train": Command("train a model, or go on with one", _train_flags, _train, config=True),
    "sample": Command("draw images from a trained model", _sample_flags, _sample),
    "forward": Command("show how the forward process turns data into noise", _forward_flags, _forward, config=True),
    "info": Command("count a config's parameters, FLOPs and memory, without training", _no_flags, _info, config=True),
    "data": Command("look at a config's data and time its pipeline", _data_flags, _data, config=True),
    "checkpoints": Command("list, verify and compare a run's checkpoints", _checkpoints_flags, _checkpoints, ("DIR",)),
    "report": Command("one page of a run: curves, pictures, settings", _report_flags, _report),
    "export": Command("a trained model's weights as safetensors", _export_flags, _export),
    "compile": Command("export a trained run's sampler as one file that needs JAX alone", _compile_flags, _compile),
    "convert": Command("weights of other projects to ours, and back", _convert_flags, _convert, ("SRC", "DST")),
}
