"""Finds code that could run somebody else's code, in the text of a Python file.

Names are followed through imports, their aliases and plain assignments. What is put together at
run time (a name from a configuration, say) is not found: that is what reviews are for.
"""

import ast
from collections.abc import Iterator

_MODULES = frozenset({
    "pickle", "_pickle", "cPickle", "pickle5", "cloudpickle", "dill", "joblib", "jsonpickle",
    "marshal", "shelve", "runpy", "pty",
})  # fmt: skip
_NAMES = frozenset({
    "torch.load", "torch.save", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter",
    "torch.serialization.load", "eval", "exec", "compile", "__import__", "builtins.eval",
    "builtins.exec", "builtins.compile", "builtins.__import__", "os.system", "os.popen",
    "subprocess.getoutput", "subprocess.getstatusoutput", "asyncio.create_subprocess_shell",
    "shutil.unpack_archive", "pandas.read_pickle", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader",
    "yaml.CLoader", "yaml.CUnsafeLoader", "yaml.CFullLoader", "yaml.Constructor",
    "yaml.UnsafeConstructor", "yaml.FullConstructor", "__builtins__",
    "multiprocessing.reduction.ForkingPickler", "torch.distributed.checkpoint.load",
    "code.InteractiveInterpreter", "code.InteractiveConsole", "code.interact",
})  # fmt: skip
"""Never to be named, called or not."""
_HIDDEN = frozenset(name.rpartition(".")[2] for name in _NAMES) - {"load", "save", "compile"}
"""What `getattr` must not fetch by a literal name."""
_METHODS = frozenset({"extractall", "extract", "add_constructor", "add_multi_constructor"})
_ATTRIBUTES = frozenset({"extractall", "_extract_member", "subprocess_shell"})
"""Of whatever object, called or not."""
_STARTS = ("os.exec", "os.spawn", "os.posix_spawn", "subprocess.")
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "/bin/sh", "/bin/bash"})
_MOST_PLACES = {
    "numpy.load": 2, "numpy.lib.format.read_array": 1, "subprocess.run": 1, "subprocess.Popen": 1,
    "subprocess.call": 1, "subprocess.check_call": 1, "subprocess.check_output": 1,
}  # fmt: skip
"""Arguments without a name: those after them would say `allow_pickle` or `shell`."""
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
    """Each imported name -> what it stands for, and each name that is set to such a one."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                root = alias.name.partition(".")[0]
                found[alias.asname or root] = alias.name if alias.asname else root
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                found[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, (ast.Assign, ast.NamedExpr)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = _full_name(node.value, found)
            if name.partition(".")[0] in {value.partition(".")[0] for value in found.values()}:
                found |= {t.id: name for t in targets if isinstance(t, ast.Name)}
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
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names if _is_unsafe(alias.name))
    elif isinstance(node, ast.ImportFrom):
        full = [_as_exported(f"{node.module}.{alias.name}") for alias in node.names]
        yield from (name for name in full if _is_unsafe(name) or name.endswith(".*"))
    elif isinstance(node, (ast.Name, ast.Attribute)):
        name = _full_name(node, aliases)
        if _is_unsafe(name) and (isinstance(node, ast.Attribute) or "." in name or name in _NAMES):
            yield name
        elif isinstance(node, ast.Attribute) and node.attr in _ATTRIBUTES:
            yield f".{node.attr}"
    elif isinstance(node, ast.Subscript):
        if _is_text(node.slice) and ast.literal_eval(node.slice) in _HIDDEN:
            yield ast.unparse(node)
    elif isinstance(node, ast.Call):
        yield from _problems_of_call(node, _full_name(node.func, aliases), aliases, safe_loaders)


def _is_unsafe(name: str) -> bool:
    return name in _NAMES or not _MODULES.isdisjoint(name.split("."))


def _problems_of_call(
    call: ast.Call, name: str, aliases: dict[str, str], safe_loaders: frozenset[str]
) -> Iterator[str]:
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
    if name in ("getattr", "operator.methodcaller", "operator.attrgetter"):
        fetched = {f"{_full_name(a, aliases)}.{text}" for a in call.args[:1] for text in texts}
        if set(texts) & (_HIDDEN | _ATTRIBUTES) or any(map(_is_unsafe, fetched)):
            yield f"{name} {texts}"
    if name == "importlib.import_module" and any(map(_is_unsafe, texts)):
        yield f"{name} {texts}"
    if name.startswith("webdataset.") and any(text.startswith("pipe:") for text in texts):
        yield "a pipe of WebDataset"
    if len(call.args) > _MOST_PLACES.get(name, len(call.args)):
        yield f"{name}: arguments without their names"
    if name.startswith(_STARTS):
        yield from _problems_of_a_start(call, name)
    yield from _problems_of_keywords(call)


def _problems_of_a_start(call: ast.Call, name: str) -> Iterator[str]:
    """Of a process: from a text, or of a shell."""
    arguments = [*call.args, *(k.value for k in call.keywords if k.arg in ("args", "executable"))]
    if name.startswith("subprocess.") and any(
        _is_text(argument) or isinstance(argument, (ast.JoinedStr, ast.BinOp))
        for argument in arguments
    ):
        yield f"{name} of a text"
    firsts = [a.elts[0] for a in arguments if isinstance(a, (ast.List, ast.Tuple)) and a.elts]
    if any(_is_text(a) and ast.literal_eval(a) in _SHELLS for a in (*firsts, *arguments)):
        yield f"{name} of a shell"


def _problems_of_keywords(call: ast.Call) -> Iterator[str]:
    given = [(keyword.arg, keyword.value) for keyword in call.keywords]
    for _, value in list(given):
        if isinstance(value, ast.Dict):  # **{"shell": True}; of any other dict it does no harm
            pairs = zip(value.keys, value.values, strict=True)
            given += [(ast.literal_eval(k), v) for k, v in pairs if k is not None and _is_text(k)]
    for key, value in given:
        safe = _SAFE_ARGUMENTS.get(key or "")
        if safe is not None and ast.unparse(value) != safe:
            yield f"{key}={ast.unparse(value)}"


def _is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _full_name(node: ast.AST, aliases: dict[str, str]) -> str:
    """A dotted name with its first part followed through the imports; empty for anything else."""
    if isinstance(node, ast.Name):
        return _as_exported(aliases.get(node.id, node.id))
    if isinstance(node, ast.Attribute):
        base = _full_name(node.value, aliases)
        return _as_exported(f"{base}.{node.attr}") if base else ""
    if isinstance(node, ast.NamedExpr):
        return _full_name(node.value, aliases)
    return ""


def _as_exported(name: str) -> str:
    """yaml.loader.Loader and the like under the name that the package itself gives them."""
    package, _, rest = name.partition(".")
    return f"yaml.{name.rpartition('.')[2]}" if package == "yaml" and rest else name
