"""``learngene boundary``: what it prints, writes and ends with; and that its judges see an escape."""

import contextlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest

from protocol.confinement import confine
from protocol.errors import RunFailedError
from protocol.terminal import make_app
from sims.boundary import boundary_command
from sims.boundary.attempt import Area, Attack, Confined, Finding, make
from sims.boundary.boundary_command import attack, attacks
from sims.boundary.node_attacks import TRIALS, hostile_node
from sims.boundary.outcome import LeftOut, Outcome
from sims.boundary.stage import attacks_of, set_stage
from tests.two_folders import Done, refused, run

SCHEMA = {
    "type": "object",
    "required": ["version", "machine", "summary", "held", "attempts", "left_out"],
    "additionalProperties": False,
    "properties": {
        "version": {"const": 1},
        "held": {"type": "boolean"},
        "machine": {
            "type": "object",
            "required": ["kernel", "architecture", "landlock_abi", "confines"],
            "properties": {"landlock_abi": {"type": "integer"}, "confines": {"type": "boolean"}},
        },
        "summary": {
            "type": "object",
            "required": ["blocked", "escaped", "not enforced"],
            "additionalProperties": {"type": "integer"},
        },
        "attempts": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "area", "tries", "control", "confined", "detail"],

                "properties": {
                    "control": {"enum": ["succeeded", "failed"]},
                    "confined": {"enum": ["blocked", "escaped", "not enforced"]},
                },
            },
        },
        "left_out": {
            "type": "array",
            "items": {"type": "object", "required": ["name", "area", "lacks"],
                      "properties": {"name": {}, "area": {}, "lacks": {}}},
        },
    },
}  # fmt: skip


def an_attack(name: str, *, control: bool = True, confined: Confined = "blocked", lacks: str = "") -> Attack:
    return Attack(name, "node", "tries it", lambda: control, lambda: confined, lacks=lacks)


@pytest.fixture
def boundary(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """Run the command on attacks of ours in place of its own."""

    def command(made: Sequence[Attack], *arguments: object) -> Done:
        def source(area: Area, folder: Path) -> contextlib.AbstractContextManager[list[Attack]]:
            assert folder.is_dir()
            return contextlib.nullcontext([replace(one, area=area) for one in made])

        monkeypatch.setattr(boundary_command, "_source", source)
        app = make_app("The boundary alone.")
        boundary_command.register(app)
        return run(app, "boundary", *arguments)

    return command


def test_a_boundary_that_holds(boundary: Callable[..., Done], tmp_path: Path) -> None:
    made = [an_attack("one"), an_attack("two", confined="not enforced"), an_attack("three", lacks="a moon")]
    done = boundary(made, "--only", "node", "--only", "courier", "--json", tmp_path / "found.json")
    assert done.code == 0, done.err
    assert done.out.endswith("4 attempts: 2 blocked, 0 escaped, 2 not enforced; every control succeeded\n")
    assert "a moon" in done.out
    # Progress is told apart from the result.
    assert "node 1/3  one: unprotected succeeded, here blocked" in done.err
    document = json.loads((tmp_path / "found.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["held"]
    assert document["summary"] == {"blocked": 2, "escaped": 0, "not enforced": 2}
    assert [(one["area"], one["name"]) for one in document["attempts"]] == [
        (area, name) for area in ("node", "courier") for name in ("one", "two")
    ]
    assert document["left_out"][0] == {"name": "three", "area": "node", "lacks": "a moon"}
    assert document["machine"]["kernel"] == os.uname().release


def test_an_escape_fails_and_is_told(boundary: Callable[..., Done], tmp_path: Path) -> None:
    done = boundary(
        [an_attack("one"), an_attack("out", confined="escaped")], "--only", "node", "--json", tmp_path / "found.json"
    )
    assert done.code == 1
    assert done.err.endswith("error: the boundary did not hold\n")
    assert "2 attempts: 1 blocked, 1 escaped, 0 not enforced" in done.out
    # What came of it is written all the same.
    assert not json.loads((tmp_path / "found.json").read_text())["held"]


def test_a_control_that_fails_fails_the_command(boundary: Callable[..., Done]) -> None:
    done = boundary([an_attack("one"), an_attack("two", control=False)], "--only", "node")
    assert done.code == 1
    assert done.err.endswith("error: a control failed\n")
    assert "1 controls failed, so that these attempts show nothing" in done.out


def test_a_list_makes_no_attack(boundary: Callable[..., Done]) -> None:
    def never() -> bool:
        raise AssertionError("it was made")

    made = Attack("one", "node", "tries it", never, lambda: "blocked")
    done = boundary([made], "--list", "--only", "node")
    assert done.code == 0
    assert "one" in done.out
    assert "tries it" in done.out


def test_an_unknown_area_and_a_missing_folder_are_refused(boundary: Callable[..., Done], tmp_path: Path) -> None:
    refused(boundary([], "--only", "moon"), "--only moon", "node, courier, messages")
    refused(boundary([], "--json", tmp_path / "nowhere" / "found.json"), "there is no folder")


def test_an_attack_that_goes_wrong_counts_as_an_escape() -> None:
    def broken() -> Confined:
        raise RunFailedError("it fell over")

    made = make(Attack("one", "node", "tries it", lambda: True, broken))
    assert made.confined == "escaped"
    assert "it fell over" in made.detail


def test_a_control_that_goes_wrong_counts_as_failed() -> None:
    def broken() -> bool:
        raise RunFailedError("it fell over")

    made = make(Attack("one", "node", "tries it", broken, lambda: "blocked"))
    assert made.control == "failed"
    assert "it fell over" in made.detail


def test_only_what_is_known_to_be_unstoppable_is_excused() -> None:
    escaped = Attack("one", "node", "tries it", lambda: True, lambda: Finding("escaped", "out"))
    assert make(escaped).confined == "escaped"
    excused = make(replace(escaped, unstoppable="nothing can"))
    assert (excused.confined, excused.detail) == ("not enforced", "nothing can")
    # What is stopped all the same is not called unstoppable.
    stopped = replace(escaped, confined=lambda: "blocked", unstoppable="nothing can")
    assert make(stopped).confined == "blocked"


def test_an_outcome_of_nothing_does_not_hold() -> None:
    assert not Outcome(()).held
    assert not Outcome((), (LeftOut("one", "node", "a moon"),)).held


def test_the_judges_see_every_escape(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The same attacks on a node that is started unconfined where a confined one belongs: nothing is called blocked."""
    with set_stage(tmp_path_factory.mktemp("open")) as stage:
        with (
            hostile_node(stage, stage.sites.unprotected, unconfined=True) as control,
            hostile_node(stage, stage.sites.collective, unconfined=True) as here,
        ):
            found = [one for one in attacks_of(stage, TRIALS, "node", control, here) if not one.lacks]
            made = {one.name: make(one) for one in found}
        excused = {one.name for one in found if one.unstoppable}
    assert len(made) > 80
    assert {name: one.confined for name, one in made.items()} == {
        name: "not enforced" if name in excused else "escaped" for name in made
    }


@pytest.mark.slow
@pytest.mark.skipif(not confine.offered(), reason="this kernel does not confine a process")
def test_the_real_thing(tmp_path: Path) -> None:
    app = make_app("The boundary alone.")
    boundary_command.register(app)
    done = run(app, "boundary", "--only", "courier", "--json", tmp_path / "found.json")
    assert done.code == 0, done.out + done.err
    document = json.loads((tmp_path / "found.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["machine"]["confines"]
    assert document["summary"]["blocked"] > 30


def test_the_folder_of_an_area_is_gone_when_it_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[Path] = []

    def source(area: Area, folder: Path) -> contextlib.AbstractContextManager[list[Attack]]:
        places.append(folder)
        (folder / "left").write_bytes(b"x")
        return contextlib.nullcontext([an_attack("one")])

    monkeypatch.setattr(boundary_command, "_source", source)
    assert attack(["node"], lambda line: None).held
    with contextlib.suppress(ZeroDivisionError), attacks("node"):
        raise ZeroDivisionError
    assert len(places) == 2
    assert not any(place.exists() for place in places)
