"""Threads that cannot end silently: what one raises reaches its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pipeline.errors import HeadraceError

END_S = 45.0  # how long a thread may take to end: longer than any call to Kafka or Redis that it may be in


class Background(threading.Thread):
    """A thread whose owner gets what it raises: at `check`, or else at `close`. It never keeps the process alive.

    Args:
        work: what it runs.
        failed: called on the thread after it raised: wakes whoever waits for its work.
    """

    def __init__(self, work: Callable[[], object], name: str, failed: Callable[[], object] = lambda: None) -> None:
        super().__init__(target=work, name=name, daemon=True)
        self.error: BaseException | None = None
        self._failed = failed
        self._is_raised = False

    def run(self) -> None:
        try:
            super().run()
        except BaseException as error:  # noqa: BLE001 - handed over
            self.error = error
            self._failed()

    @property
    def problem(self) -> str | None:
        """What ended it, as a sentence."""
        error = self.error
        return None if error is None else f"The thread {self.name} has ended by {type(error).__name__}: {error}"

    def check(self) -> None:
        """Raises what ended the thread."""
        if self.error is not None:
            self._is_raised = True
            raise self.error

    def close(self, timeout_s: float = END_S) -> None:
        """Waits for its end; whoever calls this has told it to end.

        Raises:
            HeadraceError: it does not end in time.
            BaseException: what ended it, unless `check` raised that before.
        """
        if self.ident is not None:
            self.join(timeout_s)
        if self.is_alive():
            raise HeadraceError(
                f"The thread {self.name} did not end within {timeout_s:.0f} s. Start the process again."
            )
        if not self._is_raised:
            self.check()
