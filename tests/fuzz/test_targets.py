"""The fuzz targets over their seeds and over seeded mutations of them; atheris is not needed here."""

import base64
import json
from collections.abc import Callable
from random import Random

import pytest

from protocol.encoding import blob, canonical_json
from protocol.messages import bundle_file, envelope, payloads
from protocol.transport import frame as door
from tests.fuzz import seeds
from tests.fuzz.mutations import mutate
from tests.fuzz.targets import TARGETS, DefectError

MUTATIONS = 3000
SEEDS = seeds.seeds()
LARGE = seeds.large_seeds()


def accepted(name: str) -> int:
    """How many of ``MUTATIONS`` seeded mutations the target accepted; raises what a defect raises."""
    random = Random(4)
    return sum(
        TARGETS[name].accepts(mutate(TARGETS[name], random.choice(SEEDS[name]), random)) for _ in range(MUTATIONS)
    )


def test_every_target_has_seeds_of_every_kind() -> None:
    assert set(SEEDS) == set(LARGE) == set(TARGETS)
    assert {envelope.parse(data).payload_type for data in SEEDS["envelope"]} >= set(payloads.MODELS)


@pytest.mark.parametrize("name", TARGETS)
def test_every_seed_is_accepted(name: str) -> None:
    assert all(TARGETS[name].accepts(data) for data in (*SEEDS[name], *LARGE[name]))


@pytest.mark.parametrize("name", TARGETS)
def test_what_is_put_around_an_unchanged_text_is_what_the_format_has_there(name: str) -> None:
    seen: list[bytes] = []

    def keep(text: bytes) -> bytes:
        seen.append(text)
        return text

    assert all(TARGETS[name].inside(data, keep) == data for data in SEEDS[name])
    assert len(seen) == len(SEEDS[name])


@pytest.mark.parametrize("name", TARGETS)
def test_a_mutation_is_refused_or_is_the_one_encoding_of_what_it_says(name: str) -> None:
    # Some of each, so that the mutations reach the last check of every reader.
    assert 0 < accepted(name) < MUTATIONS


def _without_its_check(_: object) -> None:
    return None


def _any_base64(text: str) -> bytes:
    return base64.b64decode(text)


def _any_json(data: bytes, **_: int) -> object:
    return json.loads(data)


def _whatever_follows(data: bytes) -> bundle_file.BundleFile:
    parts = bundle_file._HEADER.unpack_from(data)[2:]
    first, second, third = (bundle_file._HEADER.size + sum(parts[:number]) for number in range(3))
    return bundle_file.BundleFile(data[first:second], data[second:third], data[third : third + parts[2]])


@pytest.mark.parametrize(
    ("name", "module", "function", "broken", "defects"),
    [
        ("envelope", canonical_json, "decode", canonical_json.parse, (DefectError, ValueError)),
        ("envelope", envelope, "_base64", _any_base64, (DefectError, ValueError)),
        ("envelope", payloads, "fault_line", None, (TypeError,)),
        ("header", canonical_json, "parse", _any_json, (ValueError, AttributeError)),
        ("header", blob, "_read_shape", lambda name, entry: tuple(entry["shape"]), (KeyError, TypeError)),
        ("frame", door, "_check", _without_its_check, (KeyError, TypeError, ValueError, AttributeError)),
        ("frame-header", door, "_check", _without_its_check, (KeyError, TypeError, ValueError, AttributeError)),
        ("bundle-file", bundle_file, "decode", _whatever_follows, (DefectError, ValueError)),
    ],
)
def test_a_planted_defect_is_found(
    name: str,
    module: object,
    function: str,
    broken: Callable[..., object] | None,
    defects: tuple[type[Exception], ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, function, broken)
    with pytest.raises(defects):
        accepted(name)
