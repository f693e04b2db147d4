"""How many tokens a micro-batch may have: given, or found within the first steps; fewer once memory runs out.

It decides speed and memory, and of a sum its rounding alone, so that times may steer it. What was found depends on
the records' lengths and is shown nowhere.
"""

from __future__ import annotations

from typing import Literal

Asked = int | Literal["auto"]

FIRST = 1024  # where a search starts
TRIES = 4  # micro-batches of each size; the fastest counts, which another job beside this one disturbs least
GAIN = 1.03  # what twice the tokens have to bring
MOST = {"cpu": 8192}  # where running out of memory ends the process more often than it raises
FULL = 0.75  # a micro-batch of fewer of the tokens it may have says nothing of them


class TokenBudget:
    """``tokens``: the examples of a micro-batch times its longest are at most so many.

    With ``asked`` = "auto" it doubles as long as tokens a second rise with it. It halves when memory runs out, and
    never rises again after that."""

    def __init__(self, asked: Asked, device_type: str = "cpu") -> None:
        self.tokens = FIRST if asked == "auto" else asked
        self._searching = asked == "auto"
        self._most = MOST.get(device_type)
        self._before = 0.0  # tokens a second at half of ``tokens``
        self._speeds: list[float] = []

    def halve(self) -> None:
        """Memory ran out, or so many bring nothing: half of them, and no more search."""
        self.tokens = max(1, self.tokens // 2)
        self._searching = False

    def took(self, tokens: int, seconds: float) -> bool:
        """Learn from a micro-batch of so many tokens, padding included. True: ``tokens`` is another one now."""
        if not self._searching or tokens < FULL * self.tokens:
            return False
        self._speeds.append(tokens / max(seconds, 1e-9))
        if len(self._speeds) < TRIES:
            return False
        speed, self._speeds = max(self._speeds), []
        if speed < GAIN * self._before:
            self.halve()
            return True
        if self._most is not None and 2 * self.tokens > self._most:
            self._searching = False
            return False
        self._before, self.tokens = speed, 2 * self.tokens
        return True
