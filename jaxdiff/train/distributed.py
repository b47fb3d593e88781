"""Several processes: how they find each other, and how all end when one does.

A process that ends by itself leaves the others waiting: in a collective, or in the barrier that JAX puts at every
process's end. So a failure is printed, the others are told through the coordinator, and all leave by `os._exit`,
without that barrier. One that is killed tells nobody: the others find out by its missing heartbeat.
"""

import contextlib
import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from types import TracebackType
from typing import Any

import jax
from jax._src.distributed import global_state  # the coordinator's client has no public name

from jaxdiff.errors import UsageError, line

# Exit codes: of a process ended by another one's failure; of one in which nothing moved (EX_TEMPFAIL: try again).
ENDED, STUCK = 70, 75
_FAILED = "jaxdiff/failed"
_BARE, _USED = "coordinator_address should be defined", "must be called before any JAX calls"


def start(coordinator: str = "", num_processes: int = 0, process_id: int = -1, heartbeat: int = 30) -> None:
    """Join the other processes of a run, before anything is computed.

    Without arguments JAX looks for a TPU pod, Slurm, Kubernetes or Open MPI; where there is none of them, or where JAX
    is in use already, this process stays as it is.

    Args:
        coordinator: "host:port" of process 0, which listens there and on no other address of its machine.
        num_processes: how many there are.
        process_id: which one this is, 0 to num_processes - 1.
        heartbeat: seconds without a sign of life after which a process counts as dead and the others end.

    Raises:
        UsageError: for some of the three arguments without the others, values that cannot be, or no connection.

    Examples:
        >>> start("10.0.0.1:1234", num_processes=2)
        Traceback (most recent call last):
        ...
        jaxdiff.errors.UsageError: process_id is missing: give coordinator, num_processes and process_id, or none
    """
    given = _check(coordinator, num_processes, process_id, heartbeat)
    if jax.distributed.is_initialized():
        return
    try:
        if given:
            jax.distributed.initialize(
                coordinator,
                num_processes,
                process_id,
                cluster_detection_method="deactivate",
                heartbeat_timeout_seconds=heartbeat,
                # JAX's own default is every address of the machine.
                coordinator_bind_address=os.environ.get("JAX_COORDINATOR_BIND_ADDRESS", coordinator),
            )
        else:
            jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat)
    except (ValueError, RuntimeError) as error:
        if not given and (_BARE in str(error) or _USED in str(error)):
            return
        where = f" at {coordinator}" if given else ""
        text = str(error).strip().partition("\n")[0]
        raise UsageError(f"could not join the other processes{where}: {text}") from error
    threading.Thread(target=_follow, daemon=True).start()


def _check(coordinator: str, num_processes: int, process_id: int, heartbeat: int) -> bool:
    """Whether the three arguments of `start` are given; refuses what cannot be."""
    if heartbeat < 1:
        raise UsageError(f"train.heartbeat={heartbeat}: allowed is 1 second or more")
    given = {"coordinator": coordinator != "", "num_processes": num_processes != 0, "process_id": process_id != -1}
    if not any(given.values()):
        return False
    for name, present in given.items():
        if not present:
            raise UsageError(f"{name} is missing: give coordinator, num_processes and process_id, or none")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise UsageError(f"coordinator={coordinator}: need host:port, such as 10.0.0.1:1234")
    if num_processes < 1:
        raise UsageError(f"num_processes={num_processes}: allowed is 1 or more")
    if not 0 <= process_id < num_processes:
        raise UsageError(f"process_id={process_id}: allowed is 0 to {num_processes - 1}, below num_processes")
    return True


@contextlib.contextmanager
def ends_all() -> Iterator[None]:
    """Around everything a process does: an exception ends all processes, not this one alone.

    With one process it does nothing. With several it prints a `UsageError`'s line (exit code 2) or the traceback (1),
    or keeps `SystemExit`'s code, and the others leave with `ENDED`. `SystemExit` of 0, and of 128 and more (a signal,
    on which all have agreed), ends in the usual way, in which the processes wait for each other.
    """
    try:
        yield
    except BaseException as error:
        text, code = _told(error)
        agreed = isinstance(error, SystemExit) and (code == 0 or code >= 128)
        if agreed or not jax.distributed.is_initialized():
            raise
        _fail(text, code)


def _told(error: BaseException) -> tuple[str, int]:
    """What to print of an exception, and the exit code, as Python and the command line have them."""
    if (told := line(error)) is not None:
        return f"{told}\n", 2
    if isinstance(error, SystemExit):
        if isinstance(error.code, str):
            return f"{error.code}\n", 1
        return "", error.code or 0
    if isinstance(error, KeyboardInterrupt):
        return "", 130
    return "".join(traceback.format_exception(error)), 1


def _follow() -> None:
    """Leave as soon as another process says that it failed."""
    client: Any = global_state.client
    while True:
        time.sleep(1)
        try:
            who = client.key_value_try_get(_FAILED)
        except Exception as error:
            if "NOT_FOUND" in str(error):
                continue
            return  # the run is over; or the coordinator is gone, of which JAX tells
        if who != str(global_state.process_id):
            print(f"jaxdiff: process {who} failed, so this one ends", file=sys.stderr, flush=True)
            _leave(ENDED)
        return


def _fail(text: str, code: int) -> None:
    """Print, tell the others if there are any, and leave."""
    print(text, end="", file=sys.stderr, flush=True)
    if jax.distributed.is_initialized():
        with contextlib.suppress(Exception):  # another one may have failed first, or the coordinator be gone
            client: Any = global_state.client
            client.key_value_set(_FAILED, str(global_state.process_id))
        if global_state.process_id == 0:
            time.sleep(1)  # the coordinator ends with this process: the others are to hear of it first
    _leave(code)


def _leave(code: int) -> None:
    """End this process here and now, whatever its other threads wait for."""
    with contextlib.suppress(Exception):
        sys.stdout.flush()
    os._exit(code)


class Watchdog:
    """Ends the process when nothing has moved for a while, after printing where each of its threads stands.

    Use it as a context manager, and call `beat` after every step; the clock starts with the first, so that compiling
    does not count. The exit code is `STUCK`.

    Args:
        seconds: longest silence allowed, longer than the longest evaluation; 0 is off.

    Raises:
        UsageError: for less than 0.

    Examples:
        >>> with Watchdog(60) as watchdog:
        ...     for step in range(3):
        ...         watchdog.beat()
    """

    def __init__(self, seconds: int | float) -> None:
        if seconds < 0:
            raise UsageError(f"train.watchdog={seconds:g}: allowed is 0 (off) or more seconds")
        self.seconds = seconds
        self._last: float | None = None
        self._over = threading.Event()

    def beat(self) -> None:
        """Something has moved."""
        self._last = time.monotonic()

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(min(self.seconds / 10, 1.0)):
            if self._last is not None and time.monotonic() - self._last > self.seconds:
                faulthandler.dump_traceback(2, all_threads=True)
                _fail(f"jaxdiff: no step for {self.seconds:g} s; its threads stand as above\n", STUCK)
