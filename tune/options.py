"""The command line of `launch.py tune`: an option for each setting of a `SweepSpec`."""

import argparse
from typing import Any, get_args

from tune.records import Algorithm, SweepSpec

_NOT_OPTIONS = ("space", "metrics", "seed", "max_steps")  # given otherwise, or keys of their own


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--space", default="both", help="YAML file, or a ready space: attention, "
                        "optimizer, both (default: both)")  # fmt: skip
    parser.add_argument("--metric", action="append", metavar="NAME[:max]", help="logged metric to "
                        "minimise, or with :max to maximise; several with --algorithm tpe "
                        "(default: quality/proxy_frechet_ema)")  # fmt: skip
    for name, field in SweepSpec.model_fields.items():
        if name in _NOT_OPTIONS:
            continue
        text = " ".join((field.description or "").split())
        default = f" (default: {field.default})"
        if name == "num_trials":
            default = f" (default: {field.default}, or all of a grid; at most all there are)"
        kind: dict[str, Any] = {"type": field.annotation, "metavar": "N"}
        if name == "algorithm":
            kind = {"choices": get_args(Algorithm)}
        parser.add_argument(
            f"--{name.replace('_', '-')}", help=f"{text}{default}".replace("%", "%%"), **kind
        )


def given_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the command line sets, by the names of `SweepSpec`; None where it says nothing."""
    names = [name for name in SweepSpec.model_fields if name not in _NOT_OPTIONS]
    return {name: getattr(arguments, name) for name in names} | {"metrics": arguments.metric}
