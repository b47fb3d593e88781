"""SIGINT and SIGTERM: the step is finished and saved, then the run ends.

One process remembers the signal. With several they must all stop after the same step, or the others would wait in a
collective for the one that left: JAX's coordination service sees SIGTERM in any of them and names that step to all.
"""

import os
import signal
from types import FrameType
from typing import Any

import jax


class Stop:
    """Remembers SIGINT and SIGTERM until the step is done; a second one ends at once.

    Attributes:
        signal: what was asked for, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._old: dict[signal.Signals, Any] = {}
        self._several = jax.process_count() > 1

    def due(self, step: int) -> bool:
        """Whether the run ends after this step; to be asked once after every step."""
        if self._several:
            from jax.experimental import multihost_utils

            if multihost_utils.reached_preemption_sync_point(step):
                self.signal = self.signal or signal.SIGTERM
                return True
            return False
        return self.signal is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        for name, old in self._old.items():
            signal.signal(name, old)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # to JAX's own handler, which tells the others

    def __enter__(self) -> "Stop":
        for name in (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM):
            self._old[name] = signal.signal(name, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for name, old in self._old.items():
            signal.signal(name, old)
