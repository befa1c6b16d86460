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
    assert importers_of("botocore") == {"distgan/range_reader.py"}
    assert importers_of("tensorboard") == {"distgan/metrics/writer.py"}
    for file in SOURCES:
        assert not [m for m in imported(file) if m.startswith("torch.utils.tensorboard")], file


UNSAFE_ARGUMENTS = (("shell", "True"), ("allow_pickle", "True"), ("weights_only", "False"))


def is_safe_loader(call: ast.Call) -> bool:
    """The configuration's own loader is; see the test below."""
    return [ast.unparse(argument) for argument in call.args[1:]] == ["_StrictLoader"]


def test_the_configuration_s_loader_makes_no_python_objects() -> None:
    assert issubclass(config_loading._StrictLoader, yaml.SafeLoader)
    with pytest.raises(UserError, match="not valid YAML"):
        config_loading.parse_yaml("seed: !!python/object/apply:os.getcwd []", "a file")


def unsafe_places(source: str) -> list[str]:
    """Pickle, torch.load and torch.save, eval and exec, shells, archives and YAML that run code."""
    places = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            names = [alias.name for alias in node.names]
            names.append(getattr(node, "module", None) or "")
            if {n.split(".")[0] for n in names} & {"pickle", "dill", "cloudpickle", "shelve"}:
                places.append(f"line {node.lineno}: pickle")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        if called in ("torch.load", "torch.save", "eval", "exec", "os.system", "os.popen"):
            places.append(f"line {node.lineno}: {called}")
        if called.endswith(".extractall") or called in ("yaml.unsafe_load", "yaml.full_load"):
            places.append(f"line {node.lineno}: {called}")
        if called == "yaml.load" and not is_safe_loader(node):
            places.append(f"line {node.lineno}: yaml.load")
        for keyword in node.keywords:
            value = ast.unparse(keyword.value)
            if (keyword.arg, value) in UNSAFE_ARGUMENTS:
                places.append(f"line {node.lineno}: {keyword.arg}={value}")
    return places


@pytest.mark.parametrize(
    "source",  # is parsed, never run
    [
        "import pickle",
        "from pickle import loads",
        "import torch\ntorch.load('x')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "np.load('x', allow_pickle=True)",
        "tarfile.open('x').extractall()",
        "yaml.unsafe_load('x')",
        "yaml.load('x', yaml.Loader)",
        "yaml.load('x', Loader=yaml.UnsafeLoader)",
        "load('x', weights_only=False)",
    ],
)
def test_the_search_for_unsafe_code_finds_it(source: str) -> None:
    assert unsafe_places(source)


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_nothing_unsafe_is_used(file: Path) -> None:
    assert unsafe_places((ROOT / file).read_text(encoding="utf-8")) == []


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
