"""The command line, `jaxdiff COMMAND`, also `python -m jaxdiff`; the commands are in `jaxdiff.commands.table`.

Every command has its own flags (`jaxdiff COMMAND --help`). `--config` takes a Python file with `get_config()`, and any
value in it can be overridden: `--config.train.steps=100`. What the user can mend is one line on stderr and exit code 2.
"""

import logging
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from jaxdiff.commands.table import COMMANDS
from jaxdiff.errors import UsageError, line, unknown
from jaxdiff.runtime import prepare


def _config_flag(values: flags.FlagValues, argv: Sequence[str]) -> None:
    config_flags.DEFINE_config_file(
        "config",
        None,
        "Python file with get_config(); any value can be overridden: --config.train.steps=100",
        flag_values=values,
        sys_argv=list(argv),
    )


def _usage() -> str:
    lines = ["usage: jaxdiff COMMAND [--flag=value ...]", "", "commands:"]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:11} {command.summary}")
        lines.append("              " + " ".join([*command.arguments, *(f"--{flag}" for flag in _flags(name, []))]))
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
    if COMMANDS[name].config:
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
    except flags.Error as error:
        print(f"jaxdiff: {' '.join(str(error).split())}", file=sys.stderr)
    except (UsageError, OSError) as error:
        if (told := line(error)) is None:
            raise
        print(told, file=sys.stderr)
    return 2


def _drop_echoes() -> None:
    """After a failed write or read, TensorStore's threads report to an event loop that is gone, once per array; the
    failure itself is our one line."""
    usual = sys.unraisablehook

    def hook(event: Any) -> None:
        error = event.exc_value
        closed = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        dropped = isinstance(getattr(error, "__cause__", None), GeneratorExit)  # a read that another's failure ended
        if not (closed or dropped):
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
