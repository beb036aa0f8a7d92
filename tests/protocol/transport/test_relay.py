"""The order of a round, and what becomes of it where nodes refuse, fail, die or vanish."""

import tomllib
from collections.abc import Callable, Sequence
from importlib.resources import files

import pytest

from collective_node.settings import CollectiveSettings
from individual_node.method_table import METHODS
from individual_node.settings import IndividualSettings
from protocol.errors import InputError, RunFailedError
from protocol.transport.frame import Frame
from protocol.transport.relay import PartyFailedError, deployment_settings, run_round

Answer = Callable[[Frame], Frame]


class Nodes:
    """Nodes in memory. Node 7 is the collective, the others are individuals; long work takes ``looks`` looks."""

    def __init__(self, individuals: Sequence[int] = (3,), looks: int = 2) -> None:
        self.parties = {7: "collective", **{node: f"individual-{node}" for node in individuals}}
        self.looks = looks
        self.log: list[tuple[str, str]] = []
        self.carried: dict[tuple[str, str], Frame] = {}
        self.work: dict[int, tuple[str, int]] = {}
        self.overrides: dict[tuple[str, str], Answer] = {}
        self.slept: list[float] = []
        self.events: list[str] = []

    def exchange(self, node: int, command: Frame) -> Frame:
        party = self.parties[node]
        if command.name != "status":
            self.log.append((party, command.name))
        self.carried[party, command.name] = command
        if override := self.overrides.get((party, command.name)):
            return override(command)
        match command.name:
            case "status":
                job, left = self.work.get(node, ("", 0))
                self.work[node] = (job, left - 1)
                role = "collective" if party == "collective" else "individual"
                state = "idle" if not job else "working" if left > 0 else "done"
                return Frame("status", fields={"role": role, "party": party, "state": state, "job": job})
            case "evolve" | "adapt":
                self.work[node] = (command.name, self.looks)
                return Frame("accepted")
            case "request":
                return Frame("requested", parts={"request": f"{party} wants {command.fields['form']}".encode()})
            case "publish":
                return Frame(
                    "published", parts={"release": b"r", "grant": command.parts["request"], "blob": b"b", "more": b"x"}
                )
            case "inherit":
                return Frame("inherited", parts={"receipt": b"receipt"})
            case _:
                return Frame("accepted")

    def run(self, forms: Sequence[str] = ("condensed",), check_alive: Callable[[], None] = lambda: None) -> None:
        run_round(self.exchange, sorted(self.parties), forms, self.events.append, self.slept.append, check_alive)


def refuse(code: str) -> Answer:
    return lambda command: Frame("refused", fields={"code": code})


def test_the_order_of_a_round() -> None:
    nodes = Nodes()
    nodes.run(["condensed", "paper"])
    form = [
        ("individual-3", "request"),
        ("collective", "publish"),
        ("individual-3", "inherit"),
        ("collective", "receipt"),
    ]
    assert nodes.log == [("collective", "evolve"), *form, *form, ("individual-3", "adapt")]
    assert nodes.carried["collective", "publish"].parts == {"request": b"individual-3 wants paper"}
    assert nodes.carried["individual-3", "inherit"].parts == {
        "release": b"r",
        "grant": b"individual-3 wants paper",
        "blob": b"b",
    }
    assert nodes.carried["collective", "receipt"].parts == {"receipt": b"receipt"}
    assert nodes.slept


def test_nothing_is_asked_of_individuals_before_the_collective_is_done() -> None:
    nodes = Nodes(looks=5)
    steps: list[tuple[int, str]] = []
    original = nodes.exchange

    def exchange(node: int, command: Frame) -> Frame:
        steps.append((node, command.name))
        return original(node, command)

    run_round(exchange, [3, 7], ["condensed"], nodes.events.append, nodes.slept.append, lambda: None)
    evolve, request = steps.index((7, "evolve")), steps.index((3, "request"))
    assert steps[evolve + 1 : request] == [(7, "status")] * 6


def test_all_individuals_inherit_and_adapt_at_the_same_time() -> None:
    nodes = Nodes((1, 2, 30))
    nodes.run()
    adapts = [party for party, word in nodes.log if word == "adapt"]
    assert adapts == ["individual-1", "individual-2", "individual-30"]
    assert [word for _, word in nodes.log[-1:]] == ["adapt"]


@pytest.mark.parametrize("word", ["request", "inherit", "adapt"])
def test_one_individual_s_refusal_does_not_stop_the_others_but_the_round_fails(word: str) -> None:
    nodes = Nodes((1, 2))
    nodes.overrides["individual-1", word] = refuse("expired")
    with pytest.raises(PartyFailedError, match=f"individual-1 refused '{word}' \\(expired\\)") as caught:
        nodes.run()
    assert caught.value.parties == ("individual-1",)
    assert ("individual-2", "adapt") in nodes.log
    assert "the round is complete" not in nodes.events


@pytest.mark.parametrize("word", ["evolve", "publish", "receipt"])
def test_a_refusal_of_the_collective_fails_the_round(word: str) -> None:
    nodes = Nodes()
    nodes.overrides["collective", word] = refuse("wrong_run")
    with pytest.raises(PartyFailedError, match=f"collective refused '{word}' \\(wrong_run\\)") as caught:
        nodes.run()
    assert caught.value.parties == ("collective",)
    assert ("individual-3", "adapt") not in nodes.log


@pytest.mark.parametrize(("party", "job"), [("collective", "evolve"), ("individual-3", "adapt")])
@pytest.mark.parametrize("state", ["failed", "idle", "nonsense"])
def test_failed_and_forgotten_work_fails_the_round(party: str, job: str, state: str) -> None:
    nodes = Nodes()
    normal = nodes.exchange

    def exchange(node: int, command: Frame) -> Frame:
        answer = normal(node, command)
        if command.name == "status" and answer.fields["party"] == party and answer.fields["job"] == job:
            return Frame("status", fields={**answer.fields, "state": state})
        return answer

    with pytest.raises(RunFailedError, match=f"'{job}' failed at {party}"):
        run_round(exchange, [3, 7], ["condensed"], nodes.events.append, nodes.slept.append, lambda: None)


def test_a_node_started_anew_in_the_middle_is_not_waited_for_for_ever() -> None:
    nodes = Nodes(looks=10**9)
    nodes.overrides["collective", "evolve"] = lambda command: Frame("accepted")
    with pytest.raises(RunFailedError, match="'evolve' failed at collective"):
        nodes.run()


def test_a_dead_node_process_ends_the_round_with_its_own_message() -> None:
    nodes = Nodes(looks=10**9)

    def check_alive() -> None:
        if len(nodes.slept) > 3:
            raise RunFailedError("the node process of the collective (pid 1) was killed by signal 9")

    with pytest.raises(RunFailedError, match="killed by signal 9"):
        nodes.run(check_alive=check_alive)


def test_a_lost_message_is_sent_again() -> None:
    nodes = Nodes()
    lost = [refuse("unreachable"), refuse("unreachable")]
    normal = nodes.exchange

    def exchange(node: int, command: Frame) -> Frame:
        return lost.pop()(command) if command.name == "publish" and lost else normal(node, command)

    run_round(exchange, [3, 7], ["condensed"], nodes.events.append, nodes.slept.append, lambda: None)
    assert not lost
    assert nodes.events[-1] == "the round is complete"


def test_a_node_that_stays_unreachable_fails_the_round() -> None:
    nodes = Nodes()
    nodes.overrides["individual-3", "inherit"] = refuse("unreachable")
    with pytest.raises(RunFailedError, match="unreachable"):
        nodes.run()


@pytest.mark.parametrize(
    ("parties", "reason"),
    [
        ({7: "collective"}, "1 and 0"),
        ({3: "individual-3"}, "0 and 1"),
        ({7: "collective", 8: "collective", 3: "individual-3"}, "2 and 1"),
        ({7: "collective", 1: "individual-1", 2: "individual-1"}, "same name"),
    ],
)
def test_a_round_needs_one_collective_and_individuals_of_different_names(parties: dict[int, str], reason: str) -> None:
    nodes = Nodes()
    nodes.parties = parties
    with pytest.raises(RunFailedError, match=reason):
        nodes.run()
    assert nodes.log == []


@pytest.mark.parametrize(
    ("party", "word", "missing"),
    [
        ("individual-3", "request", "request"),
        ("collective", "publish", "release"),
        ("individual-3", "inherit", "receipt"),
    ],
)
def test_an_answer_without_its_part_fails_the_round(party: str, word: str, missing: str) -> None:
    nodes = Nodes()
    nodes.overrides[party, word] = lambda command: Frame("accepted")
    with pytest.raises(RunFailedError, match=f"{party} gave an answer without its {missing}"):
        nodes.run()


def test_by_default_the_relay_carries_what_nodes_with_their_defaults_publish_and_need() -> None:
    written = tomllib.loads((files("protocol") / "flower_app" / "pyproject.toml").read_text())
    forms, individuals, patience = deployment_settings(written["tool"]["flwr"]["app"]["config"])
    assert deployment_settings({}) == (forms, individuals, patience)
    needed = {METHODS[name].form for name in IndividualSettings().methods} - {None}
    assert needed <= set(forms) <= set(CollectiveSettings().forms)


def test_forms_are_separated_by_commas() -> None:
    assert deployment_settings({"forms": " paper , condensed,", "individuals": 3}) == (["paper", "condensed"], 3, 120.0)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("forms", ""),
        ("forms", " ,"),
        ("individuals", 0),
        ("individuals", True),
        ("individuals", "two"),
        ("patience", 0),
    ],
)
def test_a_wrong_setting_of_the_relay_is_named(key: str, value: object) -> None:
    with pytest.raises(InputError, match=f"run configuration: {key}: "):
        deployment_settings({key: value})
