"""Work that is too long for one movement of a slider: done in slices between two messages of the browser."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress

PAUSE = 0.12  # seconds without a change before work begins: a slider that moves gets all of the processor


class Later:
    """Calls ``step`` until it returns False: between messages where a kernel runs, or at once by :meth:`finish`.

    ``step`` does a slice of work and returns whether there is more.
    """

    def __init__(self, step: Callable[[], bool]) -> None:
        self._step = step
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """See to it that the work gets done; what was begun before waits for a pause again."""
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a plain program: there is nobody to wait for
            self.finish()
            return
        self.stop()
        self._task = loop.create_task(self._run())

    def stop(self) -> None:
        """Leave the rest undone."""
        if self._task is not None and not self._task.done():
            with suppress(RuntimeError):  # its loop has ended, and the task with it
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)  # it may be another thread's
        self._task = None

    def finish(self) -> None:
        """Do all that is left now."""
        self.stop()
        while self._step():
            pass

    async def _run(self) -> None:
        await asyncio.sleep(PAUSE)
        while self._step():
            await asyncio.sleep(0.001)  # lets messages in
