"""The command line: `jaxdiff train | sample | forward | info | compile | convert`, also `python -m jaxdiff`.

Every command has its own flags (`jaxdiff COMMAND --help`). `--config` takes a Python file with `get_config()`, and any
value in it can be overridden: `--config.train.steps=100`. What the user can mend is one line on stderr and exit code 2.
"""

import errno
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxdiff.errors import UsageError, unknown
from jaxdiff.runtime import prepare

# Failures of the machine that the user can mend; any other OSError is a defect.
_DISK = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
)


@dataclass(frozen=True)
class Command:
    """A command: what it is for, its flags, what it does with them (the exit code), and the arguments it takes without
    a flag, which `run` gets after the flags."""

    summary: str
    define: Callable[[flags.FlagValues], None]
    run: Callable[..., int]
    arguments: tuple[str, ...] = ()


def _config_flag(values: flags.FlagValues, argv: Sequence[str]) -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Python file with get_config(); any value can be overridden: --config.train.steps=100",
        flag_values=values,
        sys_argv=list(argv),
    )


def _train_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of the run; the same one again goes on", flag_values=values)


def _train(values: flags.FlagValues) -> int:
    from jaxdiff import build
    from jaxdiff.train.loop import train

    return train(build.run(_required(values, "config")), _required(values, "workdir"))


def _sample_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("workdir", None, "folder of a trained run", flag_values=values)
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
        Path(_required(values, "workdir")), Path(_required(values, "out")), overrides=_overrides(given), **spec
    )


def _forward_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("out", None, "writes OUT.png, OUT.gif and OUT_schedules.png", flag_values=values)
    flags.DEFINE_integer("num", 8, "number of images", flag_values=values)


def _forward(values: flags.FlagValues) -> int:
    from jaxdiff.commands.forward import forward

    return forward(_required(values, "config"), Path(_required(values, "out")), num=values.flag_values_dict()["num"])


def _info(values: flags.FlagValues) -> int:
    from jaxdiff.commands.info import info

    return info(_required(values, "config"))


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
    workdir, out = Path(_required(values, "workdir")), Path(_required(values, "out"))
    return compile_run(workdir, out, overrides=_overrides(given), **spec)


def _convert_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_string("preset", None, "which model a file of weights is: docs/convert.md", flag_values=values)
    flags.DEFINE_string("to", "native", "native, diffusers, openai, edm, score_sde, ...", flag_values=values)
    flags.DEFINE_bool("overwrite", False, "replace what is in DST", flag_values=values)


def _convert(values: flags.FlagValues, src: str, dst: str) -> int:
    from jaxdiff.commands.convert import convert

    given: dict[str, Any] = values.flag_values_dict()
    return convert(Path(src), Path(dst), **{name: given[name] for name in ("preset", "to", "overwrite")})


COMMANDS = {
    "train": Command("train a model, or go on with one", _train_flags, _train),
    "sample": Command("draw images from a trained model", _sample_flags, _sample),
    "forward": Command("show how the forward process turns data into noise", _forward_flags, _forward),
    "info": Command("count a config's parameters, FLOPs and memory, without training", lambda values: None, _info),
    "compile": Command("export a trained run's sampler as one file that needs JAX alone", _compile_flags, _compile),
    "convert": Command("weights of other projects to ours, and back", _convert_flags, _convert, ("SRC", "DST")),
}


def _required(values: flags.FlagValues, name: str) -> Any:
    value = values[name].value
    if value is None or value == "":
        raise UsageError(f"--{name} is missing: see 'jaxdiff COMMAND --help'")
    return value


def _usage() -> str:
    lines = ["usage: jaxdiff COMMAND [--flag=value ...]", "", "commands:"]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:8} {command.summary}")
        lines.append("           " + " ".join([*command.arguments, *(f"--{flag}" for flag in _flags(name, []))]))
    lines += [
        "",
        "  jaxdiff COMMAND --help    the flags of a command",
        "  jaxdiff --version",
        "",
        "example:",
        "  jaxdiff train --config configs/digits.py --workdir runs/digits --config.train.steps=500",
        "  jaxdiff sample --workdir runs/digits --num 20 --labels 3,7 --out runs/digits/samples",
    ]
    return "\n".join(lines)


def _flags(name: str, argv: Sequence[str]) -> flags.FlagValues:
    values = flags.FlagValues()
    if name in ("train", "forward", "info"):
        _config_flag(values, argv)
    COMMANDS[name].define(values)
    return values


def _check_overrides(argv: Sequence[str]) -> None:
    """Name the nearest config key for one that does not exist, before ml_collections raises its own error."""
    path = None
    for i, arg in enumerate(argv):
        name, _, value = arg.lstrip("-").partition("=")
        if arg.startswith("-") and name == "config":
            path = value or (argv[i + 1] if i + 1 < len(argv) else "")
    if not path:
        return
    file = path.partition(":")[0]
    if not Path(file).is_file():
        raise UsageError(f"--config={path}: there is no such file")
    known = _paths(config_flags.config_flags._ConfigFileParser(name="config", lock_config=True).parse(path))
    for arg in argv:
        name = arg.lstrip("-").partition("=")[0]
        if arg.startswith("-") and name.startswith("config.") and name.removeprefix("config.") not in known:
            raise unknown("config key", name.removeprefix("config."), known)


def _flag_help(values: flags.FlagValues) -> str:
    lines = []
    for name in values:
        flag = values[name]
        default = f" (default: {flag.default})" if flag.default is not None else ""
        lines.append(f"  --{name:12} {flag.help}{default}")
    return "\n".join(lines)


def _paths(config: ConfigDict, prefix: str = "") -> set[str]:
    """Every key of a config, sections and leaves, with dots."""
    found = set()
    for key, value in config.items():
        found.add(prefix + key)
        if isinstance(value, ConfigDict):
            found |= _paths(value, f"{prefix}{key}.")
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments without the program's name; the process's own by default.

    Returns:
        The exit code: 0 done, 2 for what the user can mend, 128 + n after signal n.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"jaxdiff {version('jaxdiff')}")
        return 0
    try:
        name, rest = argv[0], argv[1:]
        if name not in COMMANDS:
            raise unknown("command", name, COMMANDS)
        values = _flags(name, rest)
        if {"-h", "--help", "-help"} & set(rest):
            usage = " ".join(["usage: jaxdiff", name, *COMMANDS[name].arguments, "[--flag=value ...]"])
            print(f"jaxdiff {name}: {COMMANDS[name].summary}\n{usage}\n\nflags:\n{_flag_help(values)}")
            return 0
        _check_overrides(rest)
        extra = values(["jaxdiff", *rest])[1:]
        wanted = COMMANDS[name].arguments
        if len(extra) > len(wanted):
            raise UsageError(f"unexpected argument '{extra[len(wanted)]}': flags are written --name=value")
        if len(extra) < len(wanted):
            raise UsageError(f"{wanted[len(extra)]} is missing: jaxdiff {name} {' '.join(wanted)} [--flag=value ...]")
        return COMMANDS[name].run(values, *extra)
    except (UsageError, flags.Error) as error:
        print(f"jaxdiff: {' '.join(str(error).split())}", file=sys.stderr)
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(f"jaxdiff: {error.strerror}: {error.filename or 'while writing'}", file=sys.stderr)
    return 2


def _drop_echoes() -> None:
    """After a failed write, TensorStore's threads report to an event loop that is gone, once per array; the failure
    itself is our one line."""
    usual = sys.unraisablehook

    def hook(event: Any) -> None:
        if not (isinstance(event.exc_value, RuntimeError) and str(event.exc_value) == "Event loop is closed"):
            usual(event)

    sys.unraisablehook = hook
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", message="coroutine .* was never awaited", category=RuntimeWarning)
    # A cache that cannot be written costs time at the next start and is nothing to mend now.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation cache")


def run() -> None:
    """The console script."""
    prepare()
    _drop_echoes()
    sys.exit(main())
