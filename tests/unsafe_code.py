"""Finds code that could run somebody else's code, in the text of a Python file.

Names are followed through imports and their aliases. What is put together at run time (a name from
a configuration, say) is not found: that is what reviews are for.
"""

import ast
from collections.abc import Iterator

_MODULES = frozenset({
    "pickle", "_pickle", "cPickle", "pickle5", "cloudpickle", "dill", "joblib", "jsonpickle",
    "marshal", "shelve",
})  # fmt: skip
_NAMES = frozenset({
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
    "torch.serialization.load", "eval", "exec", "compile", "__import__", "builtins.eval",
    "builtins.exec", "builtins.compile", "builtins.__import__", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "shutil.unpack_archive", "pandas.read_pickle", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader",
    "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader", "yaml.Constructor",
    "yaml.UnsafeConstructor", "yaml.FullConstructor",
})  # fmt: skip
"""Never to be named, called or not."""
_HIDDEN = frozenset(name.rpartition(".")[2] for name in _NAMES) - {"load", "save", "compile"}
"""What `getattr` must not fetch by a literal name."""
_METHODS = frozenset({"extractall", "extract"})
_SAFE_ARGUMENTS = {"shell": "False", "allow_pickle": "False", "weights_only": "True"}
_SAFE_LOADERS = frozenset({"yaml.SafeLoader", "yaml.CSafeLoader"})
"""Classes that the same file derives from these alone are safe as well."""


def unsafe_places(source: str) -> list[str]:
    """A line for each place: pickles of any kind, code from text, shells, archives that are
    unpacked, YAML that makes objects, WebDataset's decoders and pipes."""
    tree = ast.parse(source)
    aliases = _aliases(tree)
    safe_loaders = _safe_loaders(tree, aliases)
    places = []
    for node in ast.walk(tree):
        for problem in _problems(node, aliases, safe_loaders):
            places.append(f"line {node.lineno}: {problem}")  # type: ignore[attr-defined]
    return places


def _aliases(tree: ast.AST) -> dict[str, str]:
    """Each imported name -> what it stands for."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                found[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    return found


def _safe_loaders(tree: ast.AST, aliases: dict[str, str]) -> frozenset[str]:
    """Names of YAML loaders that make plain values only."""
    derived = {
        node.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and node.bases
        and all(_full_name(base, aliases) in _SAFE_LOADERS for base in node.bases)
    }
    return _SAFE_LOADERS | derived


def _problems(
    node: ast.AST, aliases: dict[str, str], safe_loaders: frozenset[str]
) -> Iterator[str]:
    if isinstance(node, (ast.Import, ast.ImportFrom)):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from (name for name in modules if name.partition(".")[0] in _MODULES)
        if isinstance(node, ast.ImportFrom):
            full = [_as_exported(f"{node.module}.{alias.name}") for alias in node.names]
            yield from (name for name in full if name in _NAMES)
    elif isinstance(node, (ast.Name, ast.Attribute)):
        name = _full_name(node, aliases)
        if name in _NAMES:
            yield name
    elif isinstance(node, ast.Call):
        yield from _problems_of_call(node, aliases, safe_loaders)


def _problems_of_call(
    call: ast.Call, aliases: dict[str, str], safe_loaders: frozenset[str]
) -> Iterator[str]:
    name = _full_name(call.func, aliases)
    texts = [argument.value for argument in call.args if _is_text(argument)]
    if isinstance(call.func, ast.Attribute):
        method = call.func.attr
        if method in _METHODS:
            yield f".{method}"
        if method == "decode" and "webdataset" in {v.partition(".")[0] for v in aliases.values()}:
            yield ".decode of WebDataset, perhaps"
    if name in ("yaml.load", "yaml.load_all"):
        loaders = [*call.args[1:2], *(k.value for k in call.keywords if k.arg == "Loader")]
        if not {_full_name(loader, aliases) for loader in loaders} & safe_loaders:
            yield name
    if name.startswith("subprocess.") and call.args:
        first = call.args[0]
        if _is_text(first) or isinstance(first, (ast.JoinedStr, ast.BinOp)):
            yield f"{name} of a text"
    if name == "getattr" and _HIDDEN & set(texts):
        yield f"getattr {texts}"
    if name == "importlib.import_module" and {t.partition(".")[0] for t in texts} & _MODULES:
        yield f"{name} {texts}"
    if name.startswith("webdataset.") and any(text.startswith("pipe:") for text in texts):
        yield "a pipe of WebDataset"
    for keyword in call.keywords:
        safe = _SAFE_ARGUMENTS.get(keyword.arg or "")
        if safe is not None and ast.unparse(keyword.value) != safe:
            yield f"{keyword.arg}={ast.unparse(keyword.value)}"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _full_name(node: ast.AST, aliases: dict[str, str]) -> str:
    """A dotted name with its first part followed through the imports; empty for anything else."""
    if isinstance(node, ast.Name):
        return _as_exported(aliases.get(node.id, node.id))
    if isinstance(node, ast.Attribute):
        base = _full_name(node.value, aliases)
        return _as_exported(f"{base}.{node.attr}") if base else ""
    return ""


def _as_exported(name: str) -> str:
    """yaml.loader.Loader and the like under the name that the package itself gives them."""
    package, _, rest = name.partition(".")
    return f"yaml.{name.rpartition('.')[2]}" if package == "yaml" and rest else name
