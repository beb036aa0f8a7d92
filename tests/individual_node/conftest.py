"""Everything in float32: bfloat16 would hide small differences."""

import pytest


@pytest.fixture(autouse=True)
def _float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protocol.learngene.images.bfloat16_is_fast", lambda device: False)
