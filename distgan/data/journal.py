"""What a `prepare` that is not done yet has finished: kept beside its shards, gone at the end.

The folder `.prepare` in the output holds

    plan.json            settings and videos: only an equal command may go on
    lock                 held by the process at work (local outputs)
    00000007.tar         a finished video: its clips, and what became of it
    shard-000002.json    a finished shard, what became of the videos that end in it, and how many
                         clips of the next video it holds

Each appears in one piece, in this order: a video's file, the shard, the shard's record; then the
files of videos that the record covers go. So a kill at any moment leaves a state to go on from, and
costs the videos in work at most.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from distgan import storage
from distgan.data.manifest import MANIFEST_NAME, UNFINISHED_NAME, ShardEntry, is_shard_name
from distgan.data.spooling import VideoOutcome
from distgan.errors import UserError
from distgan.retries import in_parallel

PLAN_NAME = "plan.json"
REPORT_NAME = "videos.jsonl"
"""One line a video: its path, digest, why it was dropped, and counts."""

_SHORT = 60  # characters of a differing value in a message


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All that a data set follows from."""

    version: str
    settings: dict[str, Any]
    """By configuration key."""
    videos: dict[str, str]
    """Path -> stamp, which changes when the file does."""

    def difference(self, earlier: "Plan") -> str:
        """What differs from an earlier plan first, in words; empty if nothing does."""
        if self.version != earlier.version:
            return f"distgan {earlier.version} there, {self.version} here"
        for key in (*self.settings, *earlier.settings):
            there, here = earlier.settings.get(key), self.settings.get(key)
            if there != here:
                return f"{key}={_short(there)} there, {_short(here)} here"
        for path in sorted(self.videos.keys() ^ earlier.videos.keys()):
            return f"the video {path!r} is {'new' if path in self.videos else 'gone'}"
        for path, stamp in self.videos.items():
            if earlier.videos[path] != stamp:
                return f"the video {path!r} was written anew"
        return ""


@dataclass
class Journal:
    """The finished work on the data set in a folder, with what `resume` found there."""

    output: str
    entries: list[ShardEntry] = field(default_factory=list)
    """Of the finished shards."""
    outcomes: list[VideoOutcome] = field(default_factory=list)
    """Of the videos that end in them."""
    clips_of_next: int = 0
    """How many clips of the video after those are in the finished shards."""
    spooled: set[int] = field(default_factory=set)
    """Numbers of the finished videos whose clips wait for the shards to come."""

    @property
    def folder(self) -> str:
        return storage.join(self.output, UNFINISHED_NAME)

    def spool(self, number: int) -> str:
        """File or URL of a finished video."""
        return storage.join(self.folder, f"{number:08d}.tar")

    def add_shard(
        self, entry: ShardEntry, outcomes: Sequence[VideoOutcome], clips_of_next: int
    ) -> None:
        """Notes a shard that has just been written.

        Args:
            outcomes: of the videos that end in it, beginning after those of the shard before.
            clips_of_next: how many clips of the video after these it holds.
        """
        record = {
            "entry": entry.model_dump(mode="json"),
            "videos": [outcome.as_dict() for outcome in outcomes],
            "clips_of_next": clips_of_next,
        }
        name = f"{Path(entry.name).stem}.json"
        storage.write_bytes(storage.join(self.folder, name), json.dumps(record).encode())
        first = len(self.outcomes)
        self.entries.append(entry)
        self.outcomes += outcomes
        self.clips_of_next = clips_of_next
        self._remove_spools(range(first, len(self.outcomes)))

    def _remove_spools(self, numbers: Sequence[int]) -> None:
        limit, budget_s = storage.options().max_concurrency, storage.options().retry_seconds
        limit = 1 if storage.is_local(self.output) else limit
        in_parallel(
            lambda number, _: storage.remove(self.spool(number)),
            numbers,
            limit=limit,
            budget_s=budget_s,
        )

    def _read(self) -> None:
        """Takes up what the folder holds; what can't be used is removed."""
        names = storage.list_names(self.folder)
        for name in names:
            if name.startswith("shard-") and name.endswith(".json"):
                record = json.loads(storage.read_bytes(storage.join(self.folder, name)))
                self.entries.append(ShardEntry.model_validate(record["entry"]))
                self.outcomes += [VideoOutcome.from_dict(facts) for facts in record["videos"]]
                self.clips_of_next = record["clips_of_next"]
            elif name.endswith(".tar") and name[:-4].isdigit():
                self.spooled.add(int(name[:-4]))
            elif name not in (PLAN_NAME, "lock"):  # half of a file, or a video that was fetched
                with contextlib.suppress(FileNotFoundError):
                    _remove(storage.join(self.folder, name))
        self._check_shards()
        covered = {number for number in self.spooled if number < len(self.outcomes)}
        self._remove_spools(sorted(covered))
        self.spooled -= covered

    def _check_shards(self) -> None:
        """Raises `UserError` if a finished shard is no longer there as it was written."""
        there = {} if storage.is_local(self.output) else storage.list_tree(self.output)
        for entry in self.entries:
            path = storage.join(self.output, entry.name)
            if storage.is_local(path) and storage.exists(path):
                there[entry.name] = storage.size(path)
            if there.get(entry.name) != entry.bytes:
                raise UserError(
                    f"the unfinished data set in --output {self.output!r} has lost or changed its "
                    f"{entry.name}; delete that folder and run the same command again"
                )


@contextlib.contextmanager
def open_journal(output: str, plan: Plan) -> Iterator[Journal]:
    """The journal of the data set in `output`, a new one or one to go on with, for one process.

    Raises:
        UserError: another process is at work there, `output` can't be written, or it holds
            something else, such as finished work that follows from another plan.
    """
    journal = Journal(output)
    _refuse_other_things(output)
    with _only_process(journal):
        _refuse_other_things(output)  # while this process waited for its turn
        earlier = _read_plan(journal.folder)
        difference = plan.difference(earlier) if earlier else "nothing was begun"
        if not difference:
            journal._read()
        elif earlier and _holds_work(journal.folder):
            raise UserError(
                f"--output {output!r} holds an unfinished data set made otherwise ({difference}); "
                "run the command that began it again, name another folder, or delete that one"
            )
        else:  # whoever has second thoughts at once need not clear up first
            text = json.dumps(vars(plan))
            storage.write_bytes(storage.join(journal.folder, PLAN_NAME), text.encode())
        yield journal


def remove_journal(output: str) -> None:
    """Removes it after the end; no error if there is none."""
    storage.remove_tree(storage.join(output, UNFINISHED_NAME))


def _refuse_other_things(output: str) -> None:
    names = storage.list_names(output)
    if MANIFEST_NAME in names:
        raise UserError(
            f"--output {output!r}: another prepare has just finished there; run the same command "
            "again to see what it made"
        )
    has_plan = storage.exists(storage.join(output, UNFINISHED_NAME, PLAN_NAME))
    for name in names:
        if name == UNFINISHED_NAME and (has_plan or _is_folder(storage.join(output, name))):
            continue
        # Halves of files that a kill left are written again.
        whole = name.removeprefix(".").removesuffix(".partial")
        ours = is_shard_name(whole) or whole in (REPORT_NAME, MANIFEST_NAME)
        if not (has_plan and ours):
            raise UserError(
                f"--output {output!r} holds something else ({name}, ...); name an empty or new "
                "folder, or empty it first"
            )


def _is_folder(path: str) -> bool:
    return not storage.is_local(path) or storage.local_path(path).is_dir()


def _read_plan(folder: str) -> Plan | None:
    try:
        return Plan(**json.loads(storage.read_bytes(storage.join(folder, PLAN_NAME))))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{storage.join(folder, PLAN_NAME)} is damaged, or not of this version; delete the "
            "data set it belongs to and run the same command again"
        ) from error


def _holds_work(folder: str) -> bool:
    return any(name.endswith(".tar") or name.startswith("shard-")
               for name in storage.list_names(folder))  # fmt: skip


def _remove(path: str) -> None:
    if _is_folder(path) and storage.is_local(path):
        storage.remove_tree(path)
    else:
        storage.remove(path)


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= _SHORT else f"{text[:_SHORT]}..."


@contextlib.contextmanager
def _only_process(journal: Journal) -> Iterator[None]:
    """Holds the lock of a local output; object storage has none."""
    if not storage.is_local(journal.output):
        yield
        return
    folder = storage.local_path(journal.folder)
    try:
        existed = folder.parent.exists()
        lock = _lock(folder)
    except OSError as error:
        raise UserError(
            f"can't write to --output {journal.output!r}: {error.strerror}; name another folder"
        ) from error
    with lock:
        try:
            yield
        finally:
            if not (folder / PLAN_NAME).exists():  # refused, or done
                for remove in ((folder / "lock").unlink, folder.rmdir):
                    with contextlib.suppress(OSError):
                        remove()
                if not existed:
                    with contextlib.suppress(OSError):  # it holds a data set
                        folder.parent.rmdir()


def _lock(folder: Path) -> IO[bytes]:
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("wb")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it may have finished and removed the file in between.
            if os.fstat(lock.fileno()).st_nlink:
                return lock
        except BlockingIOError as error:
            lock.close()
            raise UserError(
                f"another prepare is at work in --output {str(folder.parent)!r}; wait for its end, "
                "or name another folder"
            ) from error
        except BaseException:
            lock.close()
            raise
        lock.close()
