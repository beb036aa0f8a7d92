"""The policy file: it narrows, says so in the digest, and is refused where somebody else could have written it."""

import os
from pathlib import Path

import pytest

from protocol.errors import InputError, PolicyDeniedError
from protocol.trust.policy import Policy
from protocol.trust.policy_file import load_policy
from tests.protocol.parties import NOW, Site, content_key, learngene


def write(folder: Path, text: str, mode: int = 0o644) -> Path:
    path = folder / "policy.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_no_file_and_an_empty_file_are_the_default(tmp_path: Path) -> None:
    assert load_policy(None, "collective") == Policy.for_role("collective")
    assert load_policy(write(tmp_path, ""), "collective") == Policy.for_role("collective")


def test_a_file_narrows_what_it_names(tmp_path: Path) -> None:
    text = 'minimum_fisher_samples = 4096\nforms = ["condensed"]\nkems = ["mlkem768-x25519"]\n'
    policy = load_policy(write(tmp_path, text), "collective")
    assert (policy.largest_epsilon_micro, policy.smallest_delta_exponent) == (None, 5)
    assert (policy.minimum_fisher_samples, policy.forms, policy.kems) == (4096, ("condensed",), ("mlkem768-x25519",))
    assert policy.kinds_out == Policy.for_role("collective").kinds_out
    assert policy.sha256 != Policy.for_role("collective").sha256


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("minimum_fisher_sample = 4096", "minimum_fisher_sample"),
        ("minimum_fisher_samples = 128", "minimum_fisher_samples"),
        ('kinds_out = ["release", "receipt"]', "never sends"),
        ('kinds_out = ["metric"]', "kinds_out"),
        ('fisher = "no" # a word', "fisher"),
        ("smallest_delta_exponent = 0", "smallest_delta_exponent"),
        ("format = 2", "format"),
        ("fisher = ", "TOML"),
    ],
)
def test_a_file_that_widens_or_names_what_there_is_not_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_policy(write(tmp_path, text), "collective")


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    for mode in (0o646, 0o664):
        with pytest.raises(InputError, match="only its operator"):
            load_policy(write(tmp_path, "", mode), "collective")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="only its operator"):
        load_policy(tmp_path / "pipe", "collective")
    with pytest.raises(InputError, match="cannot read"):
        load_policy(tmp_path / "none.toml", "collective")


def test_the_digest_of_the_policy_is_in_the_release_and_its_rules_hold(tmp_path: Path, here: Site) -> None:
    policy = load_policy(write(tmp_path, 'forms = ["paper"]'), "collective")
    collective = here.collective(policy=policy)
    assert collective.publish(learngene(form="paper"), NOW, content_key(1)).payload.policy_sha256 == policy.sha256
    with pytest.raises(PolicyDeniedError, match="not condensed"):
        collective.publish(learngene(), NOW, content_key(2))


@pytest.mark.parametrize(
    ("text", "why"), [("fisher = false", "Fisher"), ("largest_epsilon_micro = 8000000", "privacy")]
)
def test_a_policy_asks_for_more_than_the_default(tmp_path: Path, here: Site, text: str, why: str) -> None:
    collective = here.collective(policy=load_policy(write(tmp_path, text), "collective"))
    with pytest.raises(PolicyDeniedError, match=why):
        collective.publish(learngene(), NOW, content_key(1))
