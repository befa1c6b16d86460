"""Checkpoints written behind the training's back: the step waits for a copy of the state only.

Each rank copies the pieces that it owns and writes them in a thread. When all ranks have written,
which they learn from the numbers that they exchange at every step anyway, rank 0 commits. A kill
before that leaves an uncommitted folder, which no reader sees, and the checkpoint before.
"""

import secrets
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from distgan.checkpoint import (
    Fragment,
    checkpoint_folder,
    commit,
    drop_old,
    refuse_if_committed,
    write_fragments,
    writing,
)
from distgan.team import Team

Json = dict[str, Any]


class Saver:
    """Saves one checkpoint at a time; every rank makes the same calls at the same steps."""

    def __init__(self, run_dir: str, keep: int, team: Team) -> None:
        self.run_dir, self.keep, self.team = run_dir, keep, team
        # Of this start alone: a process that writes to the same run, unseen, overwrites no weights.
        self._writer = f"rank-{team.rank:05d}-{secrets.token_hex(4)}"
        self._folder = ""
        self._state: Json = {}
        self._part: Json = {}
        self._thread: _Thread | None = None
        self._uncommitted = False
        self._begun = 0.0
        self.seconds: float | None = None
        """What the last checkpoint took until it counted, on rank 0; None before."""

    @property
    def has_written(self) -> bool:
        """This rank's pieces lie in storage and wait for those of others.

        Raises:
            DistganError: they could not be written, or an earlier commit failed.
        """
        if self._thread is None or not self._thread.ended():
            return False
        return self._uncommitted

    def begin(
        self,
        step: int,
        fragments: Sequence[Fragment],
        state: Json,
        before: Callable[[], None] | None = None,
    ) -> None:
        """Starts to write; an earlier checkpoint is finished first. All ranks call it at once.

        Args:
            fragments: this rank's pieces; their values must not change any more.
            state: of the whole run; rank 0's counts.
            before: what must be in storage before the checkpoint counts; called in the thread.
        """
        self.finish()
        self._folder, self._state = checkpoint_folder(self.run_dir, step), state
        if self.team.rank == 0:
            refuse_if_committed(self._folder)
        self.team.gather(None)
        self._uncommitted = True
        self._begun = time.monotonic()
        self._thread = _Thread(lambda: self._write(fragments, before))

    def commit(self) -> None:
        """Called by all ranks when every one `has_written`; rank 0 goes on in its thread."""
        parts = self.team.gather(self._part)
        self._uncommitted = False
        if self.team.rank == 0:
            self._thread = _Thread(lambda: self._commit(parts))

    def finish(self) -> None:
        """Returns when what was begun is committed. All ranks call it at once.

        Raises:
            DistganError: it could not be; earlier checkpoints are untouched.
        """
        if self._uncommitted:
            self._join()
            self.commit()
        self._join()
        self.team.gather(None)

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread.ended()

    def _write(self, fragments: Sequence[Fragment], before: Callable[[], None] | None) -> None:
        if before is not None:
            before()
        with writing(self._folder):
            self._part = write_fragments(self._folder, self._writer, fragments)

    def _commit(self, parts: Sequence[Json]) -> None:
        with writing(self._folder):
            commit(self._folder, parts, self._state)
        self.seconds = time.monotonic() - self._begun
        drop_old(self.run_dir, self.keep)


class _Thread(threading.Thread):
    """Runs `work`, and keeps its error for whoever asks."""

    def __init__(self, work: Callable[[], None]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work()
        except BaseException as error:  # noqa: BLE001  # raised again by `ended`
            self.error = error
        finally:
            del self.work  # and with it the copy of the state, which the next one must not add to

    def ended(self) -> bool:
        """Raises the error of the work, if it had one."""
        if self.is_alive():  # asked first: an error may still come until then
            return False
        if self.error is not None:
            error, self.error = self.error, None
            raise error
        return True
