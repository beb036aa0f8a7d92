"""``learngene boundary``: what it prints, writes and ends with; and that its judges see an escape."""

import contextlib
import errno
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jsonschema
import pytest

from protocol.commands.terminal import make_app
from protocol.errors import RunFailedError
from protocol.node import confine
from sims.boundary import boundary_command
from sims.boundary.acts.act import ACTS, DONE, Aims, perform, step
from sims.boundary.acts.expectation import NO_EFFECT, Guard, Open, files
from sims.boundary.attacks_from_a_node import TRIALS, hostile_node
from sims.boundary.attempt import Area, Attack, Escaped, Failed, Found, NotEnforced, Refusal, make
from sims.boundary.boundary_command import attack, attacks
from sims.boundary.outcome import LeftOut, Outcome
from sims.boundary.stage import set_stage
from sims.boundary.trials import attacks_of
from tests.two_folders import Done, refused, run

SCHEMA = {
    "type": "object",
    "required": ["version", "machine", "summary", "held", "attempts", "left_out"],
    "additionalProperties": False,
    "properties": {
        "version": {"const": 2},
        "held": {"type": "boolean"},
        "machine": {
            "type": "object",
            "required": ["kernel", "architecture", "landlock_abi", "confines"],
            "properties": {"landlock_abi": {"type": "integer"}, "confines": {"type": "boolean"}},
        },
        "summary": {
            "type": "object",
            "required": ["blocked", "escaped", "not enforced", "not shown"],
            "additionalProperties": {"type": "integer"},
        },
        "attempts": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["name", "area", "tries", "control", "confined", "expected", "refusal", "detail"],
                "properties": {
                    "control": {"enum": ["succeeded", "failed"]},
                    "confined": {"enum": ["blocked", "escaped", "not enforced", "not shown"]},
                    "expected": {
                        "type": ["object", "null"],
                        "required": ["call", "errors", "guard"],
                        "properties": {"errors": {"minItems": 1}, "guard": {"enum": list(get_args(Guard))}},
                    },
                    "refusal": {"type": ["object", "null"], "required": ["call", "errno"]},
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


OPEN_REFUSED = files("open")
REFUSED = Refusal("open", "EACCES")


def an_attack(name: str, *, control: bool = True, found: Found = REFUSED, lacks: str = "") -> Attack:
    return Attack(name, "node", "tries it", OPEN_REFUSED, lambda: control, lambda: found, lacks)


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
    made = [an_attack("one"), an_attack("two", found=NotEnforced("an old kernel")), an_attack("three", lacks="a moon")]
    done = boundary(made, "--only", "node", "--only", "courier", "--json", tmp_path / "found.json")
    assert done.code == 0, done.err
    assert done.out.endswith("4 attempts: 2 blocked, 0 escaped, 2 not enforced, 0 not shown; every control succeeded\n")
    assert "a moon" in done.out
    # Progress is told apart from the result.
    assert "node 1/3  one: unprotected succeeded, here blocked" in done.err
    document = json.loads((tmp_path / "found.json").read_text())
    jsonschema.validate(document, SCHEMA)
    assert document["held"]
    assert document["summary"] == {"blocked": 2, "escaped": 0, "not enforced": 2, "not shown": 0}
    assert [(one["area"], one["name"]) for one in document["attempts"]] == [
        (area, name) for area in ("node", "courier") for name in ("one", "two")
    ]
    first, second = document["attempts"][:2]
    assert first["expected"] == {"call": "open", "errors": ["EACCES"], "guard": "files"}
    assert first["refusal"] == {"call": "open", "errno": "EACCES"}
    assert second["refusal"] is None
    assert document["left_out"][0] == {"name": "three", "area": "node", "lacks": "a moon"}
    assert document["machine"]["kernel"] == os.uname().release


def test_an_escape_fails_and_is_told(boundary: Callable[..., Done], tmp_path: Path) -> None:
    done = boundary(
        [an_attack("one"), an_attack("out", found=Escaped())], "--only", "node", "--json", tmp_path / "found.json"
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

    made = Attack("one", "node", "tries it", OPEN_REFUSED, never, lambda: REFUSED)
    done = boundary([made], "--list", "--only", "node")
    assert done.code == 0
    assert "one" in done.out
    assert "tries it" in done.out
    # The table breaks its lines.
    assert str(OPEN_REFUSED) in " ".join(done.out.split())


@pytest.mark.parametrize("only", [["node"], ["node", "courier"]])
def test_a_list_counts_the_attacks_of_every_area(boundary: Callable[..., Done], only: list[str]) -> None:
    made = [an_attack("one"), an_attack("two"), replace(an_attack("three"), lacks="a second user")]
    done = boundary(made, "--list", *(word for area in only for word in ("--only", area)))
    lines = done.out.splitlines()
    assert [line for line in lines if line.startswith(tuple(f"{area}: " for area in only))] == [
        f"{area}: 3 attacks, 1 of them left out here" for area in only
    ]
    assert (f"all areas: {3 * len(only)} attacks" in lines) == (len(only) > 1)


def test_an_unknown_area_and_a_missing_folder_are_refused(boundary: Callable[..., Done], tmp_path: Path) -> None:
    refused(boundary([], "--only", "moon"), "--only moon", "node, courier, users")
    refused(boundary([], "--json", tmp_path / "nowhere" / "found.json"), "there is no folder")


@pytest.mark.parametrize(
    "found",
    [
        Refusal("connect", "EACCES"),
        Refusal("open", "ENOENT"),
        Refusal("open", NO_EFFECT),
        Refusal("", "EACCES"),
        Failed("it brought nothing home"),
    ],
    ids=lambda found: str(found),
)
def test_another_failure_than_the_expected_one_is_not_shown(
    found: Found, boundary: Callable[..., Done], tmp_path: Path
) -> None:
    done = boundary([an_attack("one"), an_attack("two", found=found)], "--only", "node", "--json", tmp_path / "f.json")
    assert done.code == 1
    assert done.err.endswith("error: an attempt failed in another way than was expected\n")
    assert "2 attempts: 1 blocked, 0 escaped, 0 not enforced, 1 not shown" in done.out
    second = json.loads((tmp_path / "f.json").read_text())["attempts"][1]
    # What was expected and what came are both told.
    assert str(OPEN_REFUSED) in second["detail"]
    assert second["detail"] != make(an_attack("three")).detail


def test_an_attack_that_goes_wrong_is_not_shown() -> None:
    def broken() -> Found:
        raise RunFailedError("it fell over")

    made = make(Attack("one", "node", "tries it", OPEN_REFUSED, lambda: True, broken))
    assert made.confined == "not shown"
    assert "it fell over" in made.detail


def test_a_control_that_goes_wrong_counts_as_failed() -> None:
    def broken() -> bool:
        raise RunFailedError("it fell over")

    made = make(Attack("one", "node", "tries it", OPEN_REFUSED, broken, lambda: REFUSED))
    assert made.control == "failed"
    assert "it fell over" in made.detail


def test_only_what_is_known_to_be_unstoppable_is_excused() -> None:
    escaped = an_attack("one", found=Escaped("out"))
    assert make(escaped).confined == "escaped"
    excused = make(replace(escaped, holds=Open("nothing can")))
    assert (excused.confined, excused.detail) == ("not enforced", "nothing can")
    # What is stopped all the same was not understood.
    assert make(replace(escaped, holds=Open("nothing can"), confined=lambda: REFUSED)).confined == "not shown"


def test_an_act_is_known_by_the_call_that_was_refused() -> None:
    """And what it does not name is no refusal."""

    def refused(aims: Aims) -> bytes:
        with step("first"):
            pass
        with step("open"):
            raise PermissionError(errno.EACCES, "no")

    def unnamed(aims: Aims) -> bytes:
        raise PermissionError(errno.EACCES, "no")

    def done(aims: Aims) -> bytes:
        with step("send"):
            return DONE

    found = {}
    for act in (refused, unnamed, done):
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(ACTS, "tried", act)
            found[act.__name__] = perform("tried", {})
    assert found["refused"][2:] == ("open", "EACCES")
    assert found["unnamed"].word == "broken"
    assert found["done"] == ("done", DONE, "send", "")


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
        excused = {one.name for one in found if isinstance(one.holds, Open)}
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
