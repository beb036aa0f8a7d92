"""Fixtures for every test."""

import os
from pathlib import Path

import pytest

# Workers share the processors, so one thread for each; read when torch is loaded, which is later.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def cifar100_folder() -> Path:
    """The folder of real CIFAR-100 images that ``LEARNGENE_DATA`` names."""
    named = os.environ.get("LEARNGENE_DATA")
    if not named:
        pytest.skip("LEARNGENE_DATA is not set: this test wants real CIFAR-100 images")
    folder = Path(named)
    if not folder.is_dir():
        pytest.fail(f"LEARNGENE_DATA names {folder}, which is no folder")
    return folder
