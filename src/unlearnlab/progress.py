"""What a long computation shares with the outside: how far it is, what it cost, where it keeps its state."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path


class OverBudget(Exception):  # noqa: N818 - it reads as a sentence
    """A computation was about to take more example passes than it may."""


class Progress:
    """Counts example passes, tells how far the work is, and names the files a resumable fit saves its state in.

    ``forward`` and ``backward`` count examples **per model** (a stack of K passes each example once per model).
    ``folder``: where state is kept (None: nothing is saved); ``every``: seconds between saves;
    ``tell(done, total)`` is called at most ten times a second. ``clock`` gives the seconds that are counted.
    ``limit``: the most example passes that it may take (None: any number); counting more raises ``OverBudget``, at the same point on any machine.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        every: float = 60.0,
        tell: Callable[[int, int], None] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        limit: int | None = None,
    ) -> None:
        self.folder, self.every, self._tell, self._clock, self.limit = folder, every, tell, clock, limit
        self.forward = self.backward = 0
        self.earlier = 0.0  # seconds spent before an interruption, read back with the state
        self._started = clock()
        self._fits = 0
        self._told = 0.0

    @property
    def example_passes(self) -> int:
        """Forwards + 2 × backwards, summed over examples: what the work cost on any hardware."""
        return self.forward + 2 * self.backward

    @property
    def seconds(self) -> float:
        """Time since this computation began, interruptions left out."""
        return self.earlier + self._clock() - self._started

    def resume(self, forward: int, backward: int, seconds: float) -> None:
        """Count on from a saved state; what was done again since the interruption does not count."""
        self.earlier, self._started = seconds, self._clock()
        self._count(forward, backward)  # a state may have been saved under no limit

    def seen(self, forward: int = 0, backward: int = 0) -> None:
        """Add examples that went through the model."""
        self._count(self.forward + forward, self.backward + backward)

    def _count(self, forward: int, backward: int) -> None:
        if self.limit is not None and forward + 2 * backward > self.limit:
            raise OverBudget(f"more than {self.limit} example passes are needed; {self.example_passes} are done")
        self.forward, self.backward = forward, backward

    def step(self, done: int, total: int) -> None:
        """Say how far the work at hand is."""
        now = time.monotonic()
        if self._tell is not None and (done == total or now - self._told > 0.1):
            self._told = now
            self._tell(done, total)

    def state_file(self) -> Path | None:
        """Where the next fit of this computation keeps its state: fits are numbered in the order they start."""
        self._fits += 1
        return None if self.folder is None else self.folder / f"fit-{self._fits}.safetensors"
