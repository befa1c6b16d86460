"""No credential is written in a manifest: every text of every document is looked through."""

import re
from collections.abc import Iterator
from typing import Any

from tests.k8s_render import Document, name_of

_NAME = r"[\w.-]*(?:secret|passw|token|access_?key|api_?key|credential)[\w.-]*"
_NAMED = re.compile(_NAME, re.I)
_REFERENCES = {"CREDENTIALS", "secretName"}
"""Keys whose text is a Secret's name."""
_WRITTEN_OUT = tuple(
    re.compile(pattern, re.I)
    for pattern in (
        rf"{_NAME}[\"']?\s*[:=]\s*[\"']?[^\s\"'$]",  # NAME=value, NAME: "value"; not NAME=$VARIABLE
        rf"(?:^|\s)--?{_NAME}\s+[\"']?[^\s\"'$-]",  # --password value
        r"requirepass\s+[^\s%]",  # of Redis
        r"://[^/\s@]+:[^/\s@]+@",
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
        r"-----BEGIN [A-Z ]*PRIVATE KEY",
    )
)


def inline_secrets(documents: list[Document]) -> Iterator[str]:
    for document in documents:
        if document["kind"] == "Secret":
            yield f"{name_of(document)}: secrets are made by hand, not kept here"
        for path, text in _texts(document, name_of(document)):
            if any(pattern.search(text) for pattern in _WRITTEN_OUT):
                yield f"{path}: holds a credential"


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Every text and where it stands; with its name, where that names a credential."""
    if isinstance(value, str):
        yield path, value
    if isinstance(value, list):
        if all(isinstance(part, str) for part in value):  # a command's words belong together
            yield path, " ".join(value)
        for number, part in enumerate(value):
            yield from _texts(part, f"{path}.{number}")
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, f"{path}.{key}")
            written = part.get("value") if isinstance(part, dict) else part
            if _NAMED.fullmatch(str(key)) and key not in _REFERENCES and isinstance(written, str):
                yield f"{path}.{key}", f"{key}={written}"
        if isinstance(value.get("name"), str) and isinstance(value.get("value"), str):
            yield f"{path}.{value['name']}", f"{value['name']}={value['value']}"
