"""Runs a benchmark: `python -m benchmarks NAME [args]`; without a name it lists them.

A benchmark is a module of this package with a `main(argv)` that prints a table in Markdown.
"""

import importlib
import pkgutil
import sys

import benchmarks


def names() -> list[str]:
    """The benchmarks, by name."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name for name in found if not name.startswith("_"))


def main(argv: list[str]) -> int:
    """Runs the benchmark that the first argument names; returns the exit code."""
    name = argv[0] if argv else ""
    if name not in names():
        print("usage: python -m benchmarks NAME [args]; names: " + ", ".join(names()))
        return 0 if name in ("", "-h", "--help") else 2
    importlib.import_module(f"benchmarks.{name}").main(argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
