"""Keeps Ray Train from warning of what it does itself."""

import warnings
from typing import Any

from ray.train import DataConfig


class QuietDataConfig(DataConfig):
    """No options for Ray Data, which is not used here.

    Ray Train's controller, where this object travels, calls a deprecated option of Ray Data to
    describe it and warns of that; the filter is for that one message, in that process.
    """

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        warnings.filterwarnings("ignore", message="`ExecutionOptions.exclude_resources` is depr")
