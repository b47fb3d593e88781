"""What a run tells: `metrics.jsonl`, pictures, TensorBoard, Weights & Biases, and a progress bar.

Numbers that are none stand in `metrics.jsonl` as the strings "NaN", "Infinity" and "-Infinity": JSON has no others, and
`float` reads them.
"""

import io
import json
import logging
import math
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike
from PIL import Image
from tensorboardX import SummaryWriter
from tensorboardX.proto.summary_pb2 import Summary

from jaxdiff import pictures
from jaxdiff.errors import UsageError
from jaxdiff.files import write_whole

# What an evaluation may answer: a number, a picture (uint8 [H, W, C]), a moving one ([N, H, W, C]), or several by name.
Result = ArrayLike | Mapping[str, Any]
METRICS, SAMPLES = "metrics.jsonl", "samples"


class Logger:
    """Scalars and pictures of one run, to `metrics.jsonl`, `samples/`, TensorBoard event files and Weights & Biases.

    Of several processes the first writes; the loggers of the others do nothing.

    Args:
        workdir: the run's folder.
        step: the step the run goes on from; what an interrupted run wrote after it is dropped, because those
            steps are made again.
        wandb: a project of Weights & Biases to log to as well; "" for none.
        config: what that is told of the run.

    Raises:
        UsageError: if Weights & Biases is asked for and cannot be used.
    """

    def __init__(self, workdir: Path, step: int, *, wandb: str = "", config: Mapping[str, Any] | None = None) -> None:
        self._sinks: list[_Files | _Board | _WandB] = []
        if jax.process_index() == 0:
            # What can be refused comes first.
            self._sinks += [_WandB(workdir, wandb, config or {})] if wandb else []
            self._sinks += [_Files(workdir, step), _Board(workdir, step)]

    def scalars(self, step: int, values: dict[str, int | float]) -> None:
        """Record numbers of one step."""
        for sink in self._sinks:
            sink.scalars(step, values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C], or a moving one, [N, H, W, C]."""
        if not self._sinks:
            return
        moving = picture.ndim == 4
        data = pictures.gif(list(picture)) if moving else pictures.png(picture)
        for sink in self._sinks:
            sink.picture(step, name, picture[0] if moving else picture, data, "gif" if moving else "png")

    def results(self, step: int, results: Mapping[str, Result]) -> None:
        """Record what evaluations answered; what lies deeper is named "evaluation/part"."""
        found = dict(_flat(results))
        numbers = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
        if numbers:
            self.scalars(step, numbers)
        for name in [name for name in found if name not in numbers]:
            self.picture(step, name, np.asarray(found[name]))

    def close(self) -> None:
        """Flush everything."""
        for sink in self._sinks:
            sink.close()


def _flat(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in results.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


class _Files:
    def __init__(self, workdir: Path, step: int) -> None:
        path = workdir / METRICS
        self._samples = workdir / SAMPLES
        kept = [_line(at, values) for at, values in read_metrics(path) if at <= step]
        write_whole(path, "".join(kept).encode())
        self._file = path.open("a")

    def scalars(self, step: int, values: dict[str, int | float]) -> None:
        self._file.write(_line(step, values))
        self._file.flush()

    def picture(self, step: int, name: str, picture: np.ndarray, data: bytes, kind: str) -> None:
        write_whole(self._samples / f"{name.replace('/', '_')}_{step:07d}.{kind}", data)

    def close(self) -> None:
        self._file.close()


class _Board:
    def __init__(self, workdir: Path, step: int) -> None:
        # It says of every NaN that it is one.
        logging.getLogger("tensorboardX.x2num").setLevel(logging.ERROR)
        self._writer = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, int | float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray, data: bytes, kind: str) -> None:
        # A browser plays a GIF that comes as an image; `add_video` would need a video encoder.
        height, width, channels = picture.shape
        image = Summary.Image(height=height, width=width, colorspace=channels, encoded_image_string=data)
        self._writer.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=image)]), step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, workdir: Path, project: str, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError:
            raise UsageError(f"wandb={project!r}: the package is not installed: pip install wandb") from None
        path = workdir / "wandb_id"
        if not path.is_file():
            write_whole(path, uuid.uuid4().hex[:8].encode())
        try:
            self._run = wandb.init(
                project=project,
                name=workdir.name,
                dir=str(workdir),
                id=path.read_text(),
                resume="allow",
                config=dict(config),
            )
        except wandb.Error as error:
            raise UsageError(f"wandb={project!r}: {' '.join(str(error).split())[:200]}") from None
        self._wandb = wandb

    def _log(self, step: int, values: dict[str, Any]) -> None:
        # It takes no step twice; of steps made again after an interruption it has the same numbers already.
        if step >= self._run.step:
            self._run.log(values, step=step)

    def scalars(self, step: int, values: dict[str, int | float]) -> None:
        self._log(step, values)

    def picture(self, step: int, name: str, picture: np.ndarray, data: bytes, kind: str) -> None:
        file = io.BytesIO(data)
        made = self._wandb.Video(file, format="gif") if kind == "gif" else self._wandb.Image(Image.open(file))
        self._log(step, {name: made})

    def close(self) -> None:
        self._run.finish()


def _line(step: int, values: Mapping[str, int | float]) -> str:
    numbers = {name: value if math.isfinite(value) else json.dumps(value) for name, value in values.items()}
    return json.dumps({"step": step, **numbers}) + "\n"


def read_metrics(path: Path) -> list[tuple[int, dict[str, float]]]:
    """The numbers of each step in a `metrics.jsonl`, in the order of its lines; a torn line ends it.

    Args:
        path: the file; where there is none, there are no numbers.

    Returns:
        (step, {name: value}) of each line; a step can have several.
    """
    found = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            values = {name: float(value) for name, value in json.loads(line).items()}
            found.append((int(values.pop("step")), values))
        except (ValueError, TypeError, AttributeError, KeyError, OverflowError):
            break
    return found


class Progress:
    """A bar with loss, steps and images per second and the time left; plain lines where there is no terminal.

    Of several processes the first shows it.

    Args:
        start: the step the run goes on from.
        total: its last step.
        batch_size: images per step.
    """

    def __init__(self, start: int, total: int, batch_size: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        self._total, self._batch_size = total, batch_size
        self._since, self._from = time.monotonic(), start
        self._bar = None
        self._first = jax.process_index() == 0
        console = Console()
        if console.is_terminal and self._first:
            text = "{task.fields[text]}"
            columns = (BarColumn(20), MofNCompleteColumn(), TextColumn(text), TimeElapsedColumn())
            self._bar = Bar(*columns, console=console)
            self._task = self._bar.add_task("train", total=total, completed=start, text="compiling ...")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, step: int) -> None:
        """One more step is done."""
        if self._bar:
            self._bar.update(self._task, completed=step)

    def rate(self, step: int) -> float:
        """Steps per second since the last call, or since the start."""
        now = time.monotonic()
        rate = (step - self._from) / max(now - self._since, 1e-9)
        self._since, self._from = now, step
        return rate

    def report(self, step: int, loss: float, rate: float) -> None:
        """Show the state of the run."""
        left = (self._total - step) / max(rate, 1e-9)
        text = f"loss {loss:.4f}  {rate:.1f} step/s  {rate * self._batch_size:.0f} images/s  {_clock(left)} left"
        if self._bar:
            self._bar.update(self._task, text=text)
        else:
            self.say(f"step {step}/{self._total}  {text}")

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar:
            self._bar.console.print(text, highlight=False)
        elif self._first:
            print(text, flush=True, file=sys.stdout)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
