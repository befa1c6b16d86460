"""Whether this Python can run the program at all; imports nothing but the standard library."""

import importlib.util
import sys

from distgan.errors import UserError

REQUIRED = (
    "PIL", "av", "botocore", "deepspeed", "fsspec", "markdown", "matplotlib", "numpy", "optuna",
    "pydantic", "ray", "s3fs", "safetensors", "scipy", "tensorboard", "torch", "tqdm", "webdataset",
    "yaml",
)  # fmt: skip
"""What pyproject.toml's dependencies are imported as."""


def check_interpreter() -> None:
    """Raises `UserError` if packages are missing: a cluster's job runs under the first `python`
    that its head finds, which need not be the one that the packages were installed for."""
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{sys.executable} lacks {', '.join(missing)}: run `make demo` once and use "
            ".venv/bin/python; for jobs on a cluster, put the environment's bin folder first in "
            'PATH when Ray is started: PATH="$PWD/.venv/bin:$PATH" ray start --head'
        )
