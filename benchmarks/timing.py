"""Two sides of a comparison, each a process of its own, timed in turn.

A side is a long-lived process that waits on a pipe: it prepares a job once and then does one timed repetition whenever
it is asked. The sides are asked in turn, A B A B ..., so that what the machine does beside (other users, clock rates)
meets all of them alike, and no two ever run at the same time. What is compared is the ratio within one round; its
median, least and greatest value over the rounds are reported.

Standard library only: the peer's interpreter need not have ours' packages.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class NotMeasuredError(Exception):
    """Why a number is missing, in one line."""


@dataclass(frozen=True)
class Spread:
    """The median of some values, the least and the greatest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        found = list(values)
        return cls(statistics.median(found), min(found), max(found))

    def __format__(self, spec: str) -> str:
        return f"{self.median:{spec}} ({self.low:{spec}}-{self.high:{spec}})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """The spread of ours / theirs within each round."""
    return Spread.of(a / b for a, b in zip(ours, theirs, strict=True))


class Worker:
    """The near end of a side: starts the process, asks it, ends it.

    Args:
        command: what to run; it ends in `serve`.
        env: variables beside those of this process.
    """

    def __init__(self, command: Sequence[str], env: Mapping[str, str]) -> None:
        self.started = time.perf_counter()
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed by `close`)
        # The caller's PYTHONPATH comes before this checkout, so that a changed copy of the library can be measured.
        path = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(ROOT))))
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True, cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, **env},
        )  # fmt: skip

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one request.

        Raises:
            NotMeasuredError: if the side could not do it, with its reason.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            last = self._log.read().strip().splitlines()[-1:] or ["no word"]
            raise NotMeasuredError(f"the process ended ({self._process.wait()}): {last[0][:200]}")
        answer = json.loads(line)
        if "error" in answer:
            raise NotMeasuredError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, by closing its pipe or else by force."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def interleave(runs: Mapping[str, Callable[[], float]], repeats: int, rest: float = 0.05) -> dict[str, list[float]]:
    """Seconds of each side by rounds, after one that is not counted.

    Args:
        runs: by side, a function that does one repetition and returns its seconds.
        repeats: rounds.
        rest: seconds between two repetitions, for the spinning threads of the side before to go to sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for k in range(repeats + 1):
        # Every other round runs backwards: no side always follows the same one.
        for name in list(runs)[:: 1 if k % 2 else -1]:
            time.sleep(rest)
            took = runs[name]()
            if k:
                seconds[name].append(took)
    return seconds


def serve(
    prepare: Callable[[dict], tuple[dict, Callable[[], float]]],
    about: Callable[[], dict],
    device_peak: Callable[[], int | None],
) -> None:
    """The far end: answers "about", "prepare" (one job at a time) and "run" until the pipe closes.

    Args:
        prepare: a job to (what is known of it before it runs, one timed repetition in seconds).
        about: versions and device.
        device_peak: the most memory held on the accelerator, in bytes; None where there is none.
    """
    # What libraries print must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    run: Callable[[], float] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        answer: dict[str, Any]
        try:
            if request["do"] == "about":
                answer = about()
            elif request["do"] == "prepare":
                run = None
                answer, run = prepare(request["job"])
            else:
                assert run is not None
                answer = {"seconds": run()}
                answer["peak_bytes"] = device_peak() or _process_peak()
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _process_peak() -> int:
    """The most memory this process has held, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
