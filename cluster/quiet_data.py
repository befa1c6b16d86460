"""Ray Train without Ray Data: shards are read by our own code."""

import warnings
from typing import Any

from ray.train import DataConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2.torch.torch_trainer import TorchTrainer


class DatalessTrainer(TorchTrainer):
    """Starts no process for data sets of Ray Data. It would take as long to start as a worker, at
    each attempt, and stay until the end."""

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [each for each in callbacks if not isinstance(each, DatasetsCallback)]


class QuietDataConfig(DataConfig):
    """No options for Ray Data, which is not used here.

    Ray Train's controller, where this object travels, calls a deprecated option of Ray Data to
    describe it and warns of that; the filter is for that one message, in that process.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        warnings.filterwarnings("ignore", message="`ExecutionOptions.exclude_resources` is depr")
