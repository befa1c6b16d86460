"""Does the jobs of a comparison one after another, each in a fresh process of this machine.

So the peak of memory is a job's own, and one that is killed takes nothing with it. On Ray, side by
side, see `cluster.compare`.
"""

import contextlib
import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Protocol, TypeVar

from tqdm import tqdm

from distgan import errors
from distgan.compare.jobs import Job
from distgan.data.workers import end_with_parent, no_ctrl_c_in_new_processes
from distgan.errors import DistganError
from distgan.interrupts import TerminatedError
from distgan.run_folder import StopSignals

_POLL_S = 0.2

Argument = TypeVar("Argument")
Answer = TypeVar("Answer")


class Executor(Protocol):
    """Where jobs are done."""

    def ask(self, question: Callable[[Argument], Answer], argument: Argument) -> Answer:
        """The answer of a function of a module, on a machine of those that do the jobs."""
        ...

    def run(self, jobs: Sequence[Job]) -> None:
        """Does the jobs that are not done yet.

        Raises:
            DistganError: a job failed; what others have done stays done.
            KeyboardInterrupt: a signal came; the runs under way have left checkpoints.
        """
        ...


class OneAfterAnother:
    """In processes of this machine."""

    def ask(self, question: Callable[[Argument], Answer], argument: Argument) -> Answer:
        """See `Executor`."""
        return question(argument)

    def run(self, jobs: Sequence[Job]) -> None:
        """See `Executor`."""
        with StopSignals().watching() as signals:
            for number, job in enumerate(jobs, start=1):
                if not job.is_done():
                    tqdm.write(f"[{number}/{len(jobs)}] {job.name}")
                    _run_one(job, signals)


def stop_for(number: int) -> None:
    """Ends a command that a signal has stopped, with the exit code that says so."""
    if number == signal.SIGTERM:
        raise TerminatedError
    raise KeyboardInterrupt


def _run_one(job: Job, signals: StopSignals) -> None:
    # Forked from a process that has imported everything and does nothing else: a fresh start in a
    # fraction of a second.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distgan.compare.jobs"])
    resource_tracker.ensure_running()  # now: its start would unblock the signals blocked below
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_perform, args=(job, theirs), name=job.name)
    with no_ctrl_c_in_new_processes(), _sigterm_waits():
        process.start()
    theirs.close()
    try:
        _wait(process, signals)
        if signals.received is not None:
            stop_for(signals.received)
        _judge(job, _answer(ours), process.exitcode)
    finally:
        process.kill()  # only a second Ctrl-C finds it alive
        process.join()
        ours.close()


@contextlib.contextmanager
def _sigterm_waits() -> Iterator[None]:
    """Keeps SIGTERM to a whole process group from ending the process that forks the others: with
    it, nobody would know when they have ended. They let it through themselves."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _wait(process: BaseProcess, signals: StopSignals) -> None:
    forwarded = False
    while process.is_alive():
        process.join(_POLL_S)
        if signals.received is not None and not forwarded:
            process.terminate()  # a run then saves a checkpoint
            forwarded = True


def _perform(job: Job, answer: Connection) -> None:
    """In the new process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    end_with_parent()
    try:
        number = job.perform(show_progress=True)
    except DistganError as error:
        answer.send((type(error).__name__, str(error)))
    else:
        answer.send(("stopped" if number else "done", ""))


def _answer(connection: Connection) -> tuple[str, str]:
    try:
        kind, message = connection.recv()
    except EOFError:
        return "died", ""
    return str(kind), str(message)


def _judge(job: Job, answer: tuple[str, str], exit_code: int | None) -> None:
    """Raises what a job that is not done has to say."""
    kind, message = answer
    if kind == "done":
        return
    if kind in ("died", "stopped"):
        how = "failed, see above" if exit_code == 1 else f"ended early, exit code {exit_code}"
        raise DistganError(
            f"{job.name}: its process {how} (-9: killed, perhaps as memory ran out); what is done "
            "is kept, and the same command goes on"
        )
    raise getattr(errors, kind)(f"{job.name}: {message}")
