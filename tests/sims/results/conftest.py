"""A made run whose results are collected."""

from pathlib import Path

import pytest

from sims.results.collection import collect
from sims.results.models import Results
from tests.sims.made_run import make_run


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Results]:
    folder = make_run(tmp_path_factory.mktemp("runs"))
    return folder, collect(folder)
