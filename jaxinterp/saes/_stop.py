"""Being asked to stop: by the signals that a scheduler and a keyboard send."""

from __future__ import annotations

import json
import signal
import threading
import time
from types import FrameType
from typing import Any

import jax

from jaxinterp._processes import from_all

SECONDS = 5.0
"""Processes agree about so often whether one of them was asked to stop: schedulers wait for half a minute or so."""


class Stop:
    """Notes SIGTERM and SIGINT while it is entered, so that a loop can finish its step, save, and then let the signal act.

    `taken` steps were taken before.

    Outside the main thread, where Python takes no signals, it notes nothing.
    """

    def __init__(self, *, active: bool, taken: int = 0):
        self._active = active and threading.current_thread() is threading.main_thread()
        self._old: dict[int, Any] = {}
        self._signal: int | None = None
        self._next, self._last = 0, (taken, time.monotonic())

    def __enter__(self) -> Stop:
        if self._active:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._old[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:  # a second time: at once
            self.__exit__()
            signal.raise_signal(number)
        self._signal = int(number)

    @property
    def asked(self) -> bool:
        """Whether this process was asked."""
        return self._signal is not None

    def due(self, step: int) -> bool:
        """Whether the processes are to agree behind this step; the same in all of them. One alone need not."""
        return jax.process_count() > 1 and step >= self._next

    def agreed(self, step: int) -> bool:
        """Whether any process was asked; all of them call it."""
        before, start = self._last
        rate = (time.monotonic() - start) / max(1, step - before)
        told = [json.loads(text) for text in from_all(json.dumps([self._signal, rate]))]
        self._next = step + max(1, int(SECONDS / max(*(rate for _, rate in told), 1e-9)))
        self._last = (step, time.monotonic())
        others = [number for number, _ in told if number is not None]
        if others and self._signal is None:
            self._signal = others[0]
        return bool(others)

    def act(self) -> None:
        """Lets the signal do what it would have done."""
        number = self._signal
        self.__exit__()
        if number is not None:
            signal.raise_signal(number)
