"""Write the report of a run: one HTML file to look at and to send."""

import json
from pathlib import Path

from jaxdiff.errors import UsageError
from jaxdiff.evaluate.report import page
from jaxdiff.files import write_whole
from jaxdiff.train.checkpoint import Checkpoints
from jaxdiff.train.run import CHECKPOINTS, RUN_FILE


def report(workdir: Path, out: Path | None = None) -> int:
    """Write the report of the run in `workdir`, which may be still going on.

    Args:
        workdir: the run's folder.
        out: the file to write; by default `report.html` there.

    Raises:
        UsageError: if there is no run.
    """
    try:
        record = json.loads((workdir / RUN_FILE).read_text())
    except FileNotFoundError:
        raise UsageError(f"workdir={workdir}: there is no run, {RUN_FILE} is missing") from None
    except ValueError as error:
        raise UsageError(f"workdir={workdir}: {RUN_FILE} cannot be read: {error}") from None
    if not isinstance(record, dict):
        raise UsageError(f"workdir={workdir}: {RUN_FILE} is not the record of a run")
    steps, best = _checkpoints(workdir)
    # A file's name can hold bytes that are no text.
    text = page(workdir, record, steps, best).encode(errors="replace")
    print(write_whole(out or workdir / "report.html", text))
    return 0


def _checkpoints(workdir: Path) -> tuple[list[int], int | None]:
    """The steps saved and the best of them; a run that saved nothing yet has a report too."""
    try:
        checkpoints = Checkpoints(workdir / CHECKPOINTS, read_only=True)
    except UsageError:
        return [], None
    return checkpoints.steps, checkpoints.best
