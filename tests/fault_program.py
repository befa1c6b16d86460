"""launch.py with faults in its workers: `python -m tests.fault_program FAULTS ARGUMENTS`.

FAULTS is a JSON list; each has rank, step (the first at which it may come), place and kind as in
`tests.faulty_worker`, a marker file with a line for each time that it came, "starts", a file with a
line for each attempt that began to train, and optionally "times", how often it comes in all: once,
else. A line holds the time and the step.
"""

import os
import sys
from typing import Any

import launch
from cluster import attempt
from tests import faulty_worker


def main() -> int:
    faults, *arguments = sys.argv[1:]
    make_trainer = attempt.DatalessTrainer

    def with_fault(
        train: Any, *, train_loop_config: dict[str, Any], torch_config: Any, **options: Any
    ) -> Any:
        return make_trainer(
            faulty_worker.train_on_rank,
            torch_config=faulty_worker.FaultyTorchConfig(**vars(torch_config), faults=faults),
            train_loop_config=train_loop_config | {"faults": faults, "driver": os.getpid()},
            **options,
        )

    attempt.DatalessTrainer = with_fault  # type: ignore[assignment, misc]
    return launch.main(arguments)


if __name__ == "__main__":
    sys.exit(main())
