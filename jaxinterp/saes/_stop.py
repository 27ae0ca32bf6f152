"""Being asked to stop: by the signals that a scheduler and a keyboard send."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from jaxinterp._processes import from_all


class Stop:
    """Notes SIGTERM and SIGINT while it is entered, so that a loop can finish its step, save, and then let the signal act.

    Outside the main thread, where Python takes no signals, it notes nothing.
    """

    def __init__(self, *, active: bool):
        self._active = active and threading.current_thread() is threading.main_thread()
        self._old: dict[int, Any] = {}
        self._signal: int | None = None

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
        self._signal = number

    @property
    def asked(self) -> bool:
        """Whether this process was asked."""
        return self._signal is not None

    def agreed(self) -> bool:
        """Whether any process was asked; all of them call it."""
        others = [text for text in from_all("" if self._signal is None else str(int(self._signal))) if text]
        if others and self._signal is None:
            self._signal = int(others[0])
        return bool(others)

    def act(self) -> None:
        """Lets the signal do what it would have done."""
        number = self._signal
        self.__exit__()
        if number is not None:
            signal.raise_signal(number)
