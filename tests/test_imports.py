"""Layers import in one direction, unsafe loading is nowhere, and commands explain themselves."""

import argparse
import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from distgan import config_loading
from distgan.errors import UserError

ROOT = Path(__file__).parent.parent
SOURCES = [
    Path("launch.py"),
    *sorted(
        file.relative_to(ROOT)
        for folder in ("distgan", "cluster", "tune", "benchmarks")
        for file in (ROOT / folder).rglob("*.py")
    ),
]
LAYERS = ("distgan", "cluster", "tune", "launch")  # each may import those before it


def imported(file: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in it."""
    for node in ast.walk(ast.parse((ROOT / file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers_of(*packages: str) -> set[str]:
    return {
        file.as_posix()
        for file in SOURCES
        if any(module.split(".")[0] in packages for module in imported(file))
    }


def test_there_is_something_to_look_at() -> None:
    assert len(SOURCES) > 40
    assert "distgan/data/stream.py" in importers_of("numpy")


def test_layers_import_downwards_only() -> None:
    for file in SOURCES:
        layer = file.parts[0].removesuffix(".py")
        if layer == "benchmarks":
            continue
        above = LAYERS[LAYERS.index(layer) + 1 :]
        upwards = [module for module in imported(file) if module.split(".")[0] in above]
        assert not upwards, f"{file} imports {upwards}"
        assert not [m for m in imported(file) if m.split(".")[0] in ("tests", "benchmarks")], file


def test_outside_packages_stay_in_their_places() -> None:
    for file in importers_of("ray", "deepspeed"):
        assert not file.startswith("distgan/"), f"{file}: distgan knows no ray and no deepspeed"
    for file in importers_of("deepspeed"):
        assert file.startswith(("cluster/", "benchmarks/"))
    for file in importers_of("webdataset", "fsspec", "s3fs"):
        assert file.startswith(("distgan/data/", "benchmarks/")) or file == "distgan/drivers.py", (
            file
        )
    assert importers_of("botocore") == {"distgan/drivers.py", "distgan/range_reader.py"}
    assert importers_of("tensorboard") == {"distgan/metrics/writer.py"}
    for file in SOURCES:
        assert not [m for m in imported(file) if m.startswith("torch.utils.tensorboard")], file


@pytest.mark.parametrize(
    "tag",
    ["object/apply:os.getcwd []", "object/new:os.getcwd []", "name:os.getcwd", "module:os",
     "object:distgan.config.Config {}", "tuple [1]"],
)  # fmt: skip
def test_the_configuration_s_loader_makes_no_python_objects(tag: str) -> None:
    assert issubclass(config_loading._StrictLoader, yaml.SafeLoader)
    for text in (f"seed: !!python/{tag}", f"seed: [!!python/{tag}]"):
        with pytest.raises(UserError, match="not valid YAML"):
            config_loading.parse_yaml(text, "a file")
        with pytest.raises(UserError, match="can't read the value of seed"):
            config_loading.parse_overrides([text.replace(": ", "=")])


def test_the_configuration_and_the_command_line_load_without_torch() -> None:
    code = (
        "import sys, distgan.config, distgan.config_loading, distgan.presets, launch;"
        "launch.build_parser();"
        "print([m for m in ('torch', 'numpy', 'av', 'webdataset', 'ray') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def commands() -> dict[str, argparse.ArgumentParser]:
    import launch

    (action,) = [
        action
        for action in launch.build_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    ]
    return dict(action.choices)


def test_every_command_s_help_has_an_example_that_parses() -> None:
    import launch

    for name, parser in commands().items():
        examples = re.findall(rf"python launch\.py {name}\b.*", parser.format_help())
        assert examples, f"launch.py {name} --help shows no example"
        launch.build_parser().parse_args(examples[0].split()[2:])


def test_the_readme_lists_the_commands() -> None:
    readme = ROOT / "README.md"
    if not readme.exists():
        pytest.skip("there is no README.md yet")
    listed = re.findall(r"^\|\s*`launch\.py ([a-z]+)", readme.read_text(encoding="utf-8"), re.M)
    assert listed, "README.md has no table of commands"
    assert set(listed) == set(commands())
