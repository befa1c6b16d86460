"""What the commands of `launch.py` share: how one is added, and what its arguments mean.

Imports nothing heavy: `launch.py --help` answers at once.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from distgan.errors import UserError

if TYPE_CHECKING:
    from distgan.config import Config, StorageConfig

Commands = argparse._SubParsersAction  # of `argparse.ArgumentParser`
Handler = Callable[[argparse.Namespace], int]
"""Runs a command and returns its exit code; imports what it needs only then."""


def add_command(
    commands: "Commands[argparse.ArgumentParser]",
    name: str,
    text: str,
    run: Handler | None,
    *,
    example: str,
    details: str = "",
) -> argparse.ArgumentParser:
    """Adds a command that explains itself with `--help`.

    Args:
        run: its handler; None if it has commands of its own.
        example: a command line without `python launch.py`.
    """
    parser = commands.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.\n{details}".strip(),
        epilog=f"example: python launch.py {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if run is not None:
        parser.set_defaults(handler=run)
    return parser


def add_config(parser: argparse.ArgumentParser) -> None:
    from distgan.presets import PRESETS

    parser.add_argument("--preset", choices=sorted(PRESETS), help="named starting point")
    parser.add_argument("--config", type=Path, help="YAML file with configuration keys")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "overrides",
        nargs="*",
        metavar="KEY=VALUE",
        help="configuration keys, such as seed=3 or model.attention.kind=none; all keys with what "
        "they mean are in distgan/config.py",
    )


def add_storage_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="storage.KEY=VALUE", help="how to talk to "
                        "object storage, such as storage.endpoint_url=URL")  # fmt: skip


def sets(arguments: argparse.Namespace, key: str) -> bool:
    return any(override.partition("=")[0].strip() == key for override in arguments.overrides)


def storage_options(arguments: argparse.Namespace) -> "StorageConfig":
    """The storage section, for commands that take no other keys."""
    from distgan.config_loading import load_config

    for override in arguments.overrides:
        if not override.startswith("storage."):
            raise UserError(
                f"override {override!r}: {arguments.command} takes keys of the storage section only"
            )
    return load_config(overrides=arguments.overrides).storage


def configure_storage(arguments: argparse.Namespace) -> None:
    from distgan import storage

    storage.configure(storage_options(arguments))


def config_of(arguments: argparse.Namespace, folder: str = "runs") -> "Config":
    """The checked configuration, with absolute paths and a run folder."""
    from distgan.config_loading import load_config, with_values
    from distgan.paths import absolute

    config = load_config(arguments.preset, arguments.config, arguments.overrides)
    run_dir = config.run.dir or f"{folder}/{config.preset}-{config.seed}"
    paths = {
        "run.dir": run_dir,
        "run.init_from": config.run.init_from,
        "data.shards": config.data.shards,
        "data.cache_dir": config.data.cache_dir,
    }
    return with_values(config, {k: absolute(p) if p else "" for k, p in paths.items()})
