"""What a check of a user's method answers: a table to print and numbers to assert on."""

from dataclasses import dataclass
from typing import NamedTuple


class Check(NamedTuple):
    """One line of a report.

    Attributes:
        name: what was checked.
        ok: whether it holds.
        value: what was measured.
        allowed: what would have been right, in words.
        note: more, for the reader: the figures behind the value, or the error that stopped the check.
    """

    name: str
    ok: bool
    value: float
    allowed: str
    note: str = ""


@dataclass(frozen=True)
class Report:
    """The outcome of several checks; `print` it.

    Attributes:
        subject: what was checked.
        checks: one entry per check.

    Examples:
        >>> report = Report("ours", (Check("order", True, 1.01, "1 +- 0.15"),))
        >>> print(report)
        ours: ok
          pass  order        1.01  (1 +- 0.15)
        >>> report["order"].value
        1.01
    """

    subject: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        return {check.name: check for check in self.checks}[name]

    def __str__(self) -> str:
        failed = sum(not check.ok for check in self.checks)
        lines = [f"{self.subject}: {f'{failed} of {len(self.checks)} checks fail' if failed else 'ok'}"]
        width = max((len(check.name) for check in self.checks), default=0)
        for name, ok, value, allowed, note in self.checks:
            verdict = "pass" if ok else "FAIL"
            lines.append(f"  {verdict}  {name:{width}}  {value:10.3g}  ({allowed}){'  ' + note if note else ''}")
        return "\n".join(lines)
