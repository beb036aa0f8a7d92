"""Fixtures of the protocol's tests: two sites, and one honest exchange between them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from protocol.digest import digest_of
from protocol.exchange.collective_endpoint import Answer
from protocol.exchange.expectation import Expectation
from tests.protocol.parties import CONTENT_KEY, INDIVIDUAL, NOW, RUN, Exchange, Site, learngene

# The same examples every time, and no test that fails because the machine is busy.
_SLOW = (HealthCheck.too_slow,)
settings.register_profile("protocol", deadline=None, derandomize=True, suppress_health_check=_SLOW)
settings.load_profile("protocol")


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    """The collective's site."""
    site = Site(tmp_path / "collective")
    yield site
    for ledger in site.opened:
        ledger.close()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Site]:
    """The individual's site."""
    site = Site(tmp_path / "individual-1")
    yield site
    for ledger in site.opened:
        ledger.close()


@pytest.fixture(scope="session")
def exchange(tmp_path_factory: pytest.TempPathFactory) -> Exchange:
    """A request and its honest answer, as bytes."""
    folder = tmp_path_factory.mktemp("exchange")
    request = Site(folder / "individual-1").individual().request("condensed", NOW, b"n" * 16)
    collective = Site(folder / "collective").collective()
    collective.publish(learngene(), NOW, CONTENT_KEY)
    answer = collective.answer_request(request, NOW)
    assert isinstance(answer, Answer)
    return Exchange(request, answer, Expectation(RUN, INDIVIDUAL.keyid, {digest_of(request): "condensed"}))
