"""What the process that started a run makes of the errors that ended its workers."""

import errno

import pytest

from cluster import job
from cluster.worker import _failure
from distgan.checkpoint import DamagedCheckpointError
from distgan.config import Config
from distgan.errors import DistganError, DivergedError, NonFiniteError, StorageError, UserError
from distgan.run_folder import StopSignals


def judge(*errors: DistganError | ImportError | OSError, failures: int = 0) -> job._Run:
    """A run after its ranks ended with these errors, rank by rank."""
    run = job._Run(Config(), StopSignals())
    run.failures = failures
    told = [_failure(rank, error) for rank, error in enumerate(errors)]
    run._judge(None, [failure for failure in told if failure is not None], progress=False)
    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("this value"), 2),
        (DamagedCheckpointError("this value"), 2),  # its class is known to its module alone
        (ImportError("this value"), 2),
        (OSError(errno.ENOSPC, "this value", "/runs/a/metrics.jsonl"), 2),
        (DivergedError("this value"), 3),
        (NonFiniteError("this value"), 3),
    ],
)
def test_errors_of_every_class_end_the_run_with_their_exit_code(
    error: DistganError | ImportError | OSError, code: int
) -> None:
    with pytest.raises(DistganError, match="this value") as raised:
        judge(error)
    assert raised.value.exit_code == code


def test_divergence_goes_before_bad_input() -> None:
    with pytest.raises(DivergedError):
        judge(UserError("a consequence"), DivergedError("the cause"))


def test_storage_that_fails_is_a_fault_which_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "committed_steps", lambda run_dir: [])
    assert judge(StorageError("down for 300 s")).failures == 1
    with pytest.raises(job.FaultError, match="down for 300 s"):
        judge(StorageError("down for 300 s"), failures=Config().cluster.max_failures)


def test_a_connection_that_broke_is_a_fault_which_may_pass() -> None:
    """Other than a full disk, which ends the run with its remedy, as in local mode."""
    assert _failure(0, ConnectionResetError(errno.ECONNRESET, "reset")) is None
