"""Attacks through a whole Flower deployment: a hostile app reaches the site only where nothing confines it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.node import confine
from sims.boundary.attempt import Attempt, make
from sims.boundary.deployment_attacks import deployment_attacks
from sims.boundary.user_attacks import lacks_another_user
from sims.run.same_user import offered

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds what is left behind in /proc"),
]

#: What is known not to be stopped by anything.
UNSTOPPABLE = {"an app archive stands in the way of our packages", "an app sends elsewhere what it has"}
#: What needs no confinement, as the node itself refuses it.
THROUGH_THE_RELAY = {
    "a replayed bundle through Flower",
    "another individual's bundle through Flower",
    "another run's bundle through Flower",
}
#: What another user of the machine meets.
BY_ANOTHER_USER = "ask a site's SuperLink as another user"


@pytest.fixture(scope="module")
def attempts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Attempt]]:
    with pytest.MonkeyPatch.context() as shell:
        # What an operator may have set, and Flower would heed.
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTPS_PROXY"):
            shell.setenv(name, "http://192.0.2.1:3128")
        shell.setenv("no_proxy", "")
        shell.setenv("FORCE_COLOR", "1")
        shell.setenv("FLWR_INTERNAL_GRPC_CONTROL_API", "1")
        with deployment_attacks(tmp_path_factory.mktemp("d")) as attacks:
            yield {attack.name: make(attack) for attack in attacks if not attack.lacks}


def test_every_control_succeeds(attempts: dict[str, Attempt]) -> None:
    assert {name: made.detail for name, made in attempts.items() if made.control != "succeeded"} == {}


def test_under_the_courier_nothing_of_the_site_is_reached(attempts: dict[str, Attempt]) -> None:
    others = UNSTOPPABLE | THROUGH_THE_RELAY | {BY_ANOTHER_USER}
    thefts = {name: made for name, made in attempts.items() if name not in others}
    assert len(thefts) >= 6
    expected = "blocked" if confine.offered() else "not enforced"
    assert {name: made.confined for name, made in thefts.items()} == dict.fromkeys(thefts, expected)


def test_a_relay_that_repeats_swaps_and_crosses_achieves_nothing(attempts: dict[str, Attempt]) -> None:
    found = {name: made.refusal and made.refusal.error for name, made in attempts.items() if name in THROUGH_THE_RELAY}
    assert found == {
        "a replayed bundle through Flower": "receipt",
        "another individual's bundle through Flower": "wrong_audience",
        "another run's bundle through Flower": "wrong_run",
    }
    assert {attempts[name].confined for name in THROUGH_THE_RELAY} == {"blocked"}


def test_the_superlink_answers_its_own_user_only(attempts: dict[str, Attempt]) -> None:
    if lack := lacks_another_user():
        pytest.skip(lack)
    made = attempts[BY_ANOTHER_USER]
    assert (made.control, made.confined) == ("succeeded", "blocked" if offered() else "not enforced")
    assert not offered() or (made.refusal and made.refusal.error) == "403"


def test_what_nothing_stops_is_said_to_be_so(attempts: dict[str, Attempt]) -> None:
    found = {name for name, made in attempts.items() if made.confined == "not enforced" and made.detail}
    assert found >= UNSTOPPABLE
