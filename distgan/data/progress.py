"""How far prepare is: a bar on a terminal, else a line now and then; a word at the end."""

import sys
import time
from typing import Self

from tqdm import tqdm

LINE_INTERVAL_S = 30.0
"""Between lines where there is no terminal, such as a log file."""


class Progress:
    """Counts videos. Those that were finished before this start don't enter the rate.

    Args:
        total: videos in all.
        before: of these, finished by earlier starts of the same command.
        clips: clips that are in shards already.
    """

    def __init__(self, total: int, before: int, clips: int, *, show: bool) -> None:
        self.total, self.before, self.done, self.clips = total, before, before, clips
        self._show = show
        self._start_s = self._said_s = time.monotonic()
        on_terminal = show and sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=before,
            desc="prepare",
            unit="video",
            smoothing=0.05,
            disable=not on_terminal,
        )

    def __enter__(self) -> Self:
        if self.before:
            self._say(f"prepare: going on; {self.before} of {self.total} videos are finished")
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()
        new, seconds = self.done - self.before, time.monotonic() - self._start_s
        self._say(
            f"prepare: {new} videos in {tqdm.format_interval(seconds)} "
            f"({new / max(seconds, 1e-9):.2f} videos/s)"
            + (f", {self.before} finished before" if self.before else "")
        )

    def update(self, *, is_new: bool, clips: int) -> None:
        """One more video is in shards; `is_new` if it was worked on since this start."""
        self.done += is_new
        self.clips += clips
        self._bar.set_postfix(clips=self.clips, refresh=False)
        self._bar.update(int(is_new))
        now = time.monotonic()
        if self._bar.disable and now - self._said_s >= LINE_INTERVAL_S:
            self._said_s = now
            self._say(self.line(now - self._start_s))

    def line(self, seconds: float) -> str:
        """Where it is after so many seconds, with an estimate of the time that remains."""
        rate = (self.done - self.before) / max(seconds, 1e-9)
        left = tqdm.format_interval((self.total - self.done) / rate) if rate else "?"
        return (
            f"prepare: {self.done} of {self.total} videos, {rate:.2f} videos/s, {left} left, "
            f"{self.clips} clips"
        )

    def _say(self, text: str) -> None:
        if self._show:
            print(text, file=sys.stderr, flush=True)
