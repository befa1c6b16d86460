"""Fixtures that several test files share."""

from pathlib import Path

import pytest

from tests.tiny import make_tiny_data


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of a prepared data set of 40 clips that fits `tests.tiny.TINY`."""
    return make_tiny_data(Path(tmp_path_factory.mktemp("tiny")))
