"""What a run tells: `metrics.jsonl`, TensorBoard, and a progress bar."""

import json
import sys
import time
from pathlib import Path
from types import TracebackType

import numpy as np
from tensorboardX import SummaryWriter

from jaxdiff import pictures
from jaxdiff.files import write_whole


class Logger:
    """Scalars and pictures of one run, to `metrics.jsonl`, `samples/` and TensorBoard event files.

    Args:
        workdir: the run's folder.
        step: the step the run goes on from; what an interrupted run wrote after it is dropped, because those
            steps are made again.
    """

    def __init__(self, workdir: Path, step: int) -> None:
        self._path = workdir / "metrics.jsonl"
        self._samples = workdir / "samples"
        kept = [line for line in _lines(self._path) if line["step"] <= step]
        write_whole(self._path, "".join(json.dumps(line) + "\n" for line in kept).encode())
        self._file = self._path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        """Record numbers of one step."""
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """Record a picture, uint8 [H, W, C]."""
        write_whole(self._samples / f"{name}_{step:07d}.png", pictures.png(picture))
        self._board.add_image(name, picture, step, dataformats="HWC")

    def close(self) -> None:
        """Flush everything."""
        self._file.close()
        self._board.close()


def _lines(path: Path) -> list[dict]:
    """The whole lines of a file that may end in a torn one."""
    if not path.exists():
        return []
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return found


class Progress:
    """A bar with loss, steps and images per second and the time left; plain lines where there is no terminal.

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
        console = Console()
        if console.is_terminal:
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
        else:
            print(text, flush=True, file=sys.stdout)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
