"""Where Ray Tune and the ledger meet: Tune asks for trials, and tells of results and faults."""

from typing import Any

from ray import tune as ray_tune
from ray.tune.execution import class_cache
from ray.tune.search import Searcher

from distgan.errors import UserError
from tune.ledger import Ledger


def keep_credentials_here() -> None:
    """Tune would hand this process's AWS credentials to its trials in a way that shows them in
    process arguments and Ray's logs; trials find those of their machine, as all workers do."""
    secret = {name for name in class_cache.ENV_VARS_TO_PROPAGATE if name.startswith("AWS_")}
    class_cache.ENV_VARS_TO_PROPAGATE.difference_update(secret)


class _NotKept:
    """Tune saves all that it is given beside its own state, which nobody reads back."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class LedgerSearcher(_NotKept, Searcher):
    """Hands out the ledger's jobs, one at a time."""

    def __init__(self, ledger: Ledger) -> None:
        super().__init__()
        self.ledger = ledger

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        """A job, None (not now), or `Searcher.FINISHED`, a text."""
        try:
            job = self.ledger.next_job()
        except UserError as error:  # Tune would wrap it; the main thread raises it
            self.ledger.end_with(error)
            return Searcher.FINISHED
        if job is not None:
            return job
        return Searcher.FINISHED if self.ledger.is_finished() else None

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        """Nothing to keep: all follows from the trials' records."""

    def restore(self, checkpoint_path: str) -> None:
        raise NotImplementedError("sweeps go on from their records")


class LedgerCallback(_NotKept, ray_tune.Callback):
    """Tells the ledger what Tune hears of its trials."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        trial_id = trial.config["trial_id"]
        if result["state"] == "running":
            self.ledger.note_evaluation(trial_id, result)
        else:
            self.ledger.note_end(trial_id, result)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ledger.note_recovery(trial.config["trial_id"], trial.num_failures)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self.ledger.note_failure(trial.config["trial_id"], trial.num_failures)
