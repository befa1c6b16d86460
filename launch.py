"""The command line of distgan: `python launch.py COMMAND --help` explains each command."""

import argparse
import os
import select
import signal
import sys
from collections.abc import Sequence
from typing import Any

from cluster.commands import add_compare, add_doctor, add_prepare, add_submit, add_train
from distgan.commands import add_data, add_demo, add_generate
from distgan.errors import DistganError, UserError, for_user
from distgan.interpreter import check_interpreter
from tune.commands import add_tune

_BROKEN_PIPE = 128 + signal.SIGPIPE  # as the shell has it of a program that this signal ended


class _Parser(argparse.ArgumentParser):
    """Takes KEY=VALUE overrides before, between and after options."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        parsed, left = super().parse_known_args(args, namespace)
        if hasattr(parsed, "overrides") and not any(text.startswith("-") for text in left):
            parsed.overrides, left = [*parsed.overrides, *left], []
        return parsed, left


def build_parser() -> argparse.ArgumentParser:
    """The whole command line; commands import what they need only when they run."""
    parser = _Parser(
        prog="launch.py",
        description="Trains attention-based video GANs: prepare videos, train, generate.",
        epilog="New here? Run `python launch.py demo` and look at the pictures it makes.",
    )
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="COMMAND", parser_class=argparse.ArgumentParser
    )
    for add in (add_demo, add_prepare, add_data, add_train, add_generate, add_compare, add_doctor):
        add(commands)
    add_tune(commands)
    add_submit(commands, build_parser)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    try:
        check_interpreter()
    except UserError as error:
        print(f"launch.py: {error}", file=sys.stderr)
        return error.exit_code
    parsed = build_parser().parse_args(arguments)
    command = f"{parsed.command} {getattr(parsed, 'data_command', '')}".strip()
    try:
        code = int(parsed.handler(parsed))
        sys.stdout.flush()  # what reads it may be gone, which shall show here, not at the exit
        return code
    except DistganError as error:
        print(f"launch.py {command}: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return _BROKEN_PIPE
        mended = for_user(error)
        if mended is None:
            raise
        print(f"launch.py {parsed.command}: {mended}", file=sys.stderr)
        return mended.exit_code
    except KeyboardInterrupt as error:
        print(f"launch.py {command}: interrupted", file=sys.stderr)
        return int(getattr(error, "exit_code", 130))  # 143 after SIGTERM


def _nobody_reads() -> bool:
    """Whether what read the output has ended, as `head` does; then nothing more is written."""
    output = sys.stdout.fileno()
    poll = select.poll()
    poll.register(output, 0)  # asks for errors alone
    if not poll.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return True


if __name__ == "__main__":
    sys.exit(main())
