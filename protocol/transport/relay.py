"""The relay: starts one round and carries opaque bytes. It is not trusted: the worst that it can cause is that nothing
happens.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn

from flwr.app import Context, Message
from flwr.serverapp import Grid, ServerApp

from protocol.errors import FLOWER_ENDED, InputError, RefusedError, RunFailedError
from protocol.output import say
from protocol.transport.courier import MESSAGE_TYPE, UNREACHABLE, from_record, to_record
from protocol.transport.frame import Frame
from protocol.visible_text import visible_line, visible_name

logger = logging.getLogger(__name__)

Exchange = Callable[[int, Frame], Frame]

#: Both forms, so that a node with default settings gets what its methods need.
DEFAULT_FORMS = "condensed,paper"
#: Seconds between two looks at long work.
POLL_SECONDS = 2.0
#: A command that did not reach its node, or whose answer got lost, is repeated; every command may be repeated.
_ATTEMPTS = 5
_LONGEST_REASON = 400

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """One round between the SuperNodes of a deployment.

    Raises:
        RunFailedError: the round did not reach its end; Flower then calls the run failed.
    """
    forms, individuals, patience = deployment_settings(context.run_config)
    nodes = _wait_for_nodes(grid, 1 + individuals, patience)
    run_round(exchange_over(grid, check_flower), nodes, forms, say, time.sleep, check_flower)


def run_round(
    exchange: Exchange,
    nodes: Sequence[int],
    forms: Sequence[str],
    on_event: Callable[[str], None],
    sleep: Callable[[float], None],
    check_alive: Callable[[], None],
) -> None:
    """Run one round: the collective evolves; every individual inherits each form; all individuals adapt.

    Every command may be repeated without harm, so a round that broke off is simply run again.

    Args:
        exchange: brings a command to a node and returns the answer.
        nodes: Flower's numbers of the nodes; one of them must say that it is the collective.
        forms: the forms of learngene to publish.
        on_event: told of each step in a line of plain words.
        sleep: waits the given number of seconds.
        check_alive: called between two looks at long work; raises an error if a node has died.

    Raises:
        PartyFailedError: a node refused or failed. If only individuals failed, the others have finished before.
        RunFailedError: there is no single collective, or no node answers.
    """
    ask = _patient(exchange, sleep, check_alive)
    collective, individuals = _roles(ask, nodes)
    on_event(f"{len(individuals) + 1} nodes: {collective.party}, {', '.join(party.party for party in individuals)}")

    collective.order("evolve")
    on_event(f"{collective.party} evolves")
    while collective.works("evolve"):
        check_alive()
        sleep(POLL_SECONDS)

    failures: list[PartyFailedError] = []
    adapting: list[_Party] = []
    for individual in individuals:
        try:
            for form in forms:
                _inherit(collective, individual, form, on_event)
            individual.order("adapt")
            adapting.append(individual)
        except PartyFailedError as error:
            failures.append(error)
    on_event(f"{len(adapting)} of {len(individuals)} individuals adapt")
    while adapting:
        check_alive()
        for individual in list(adapting):
            try:
                if individual.works("adapt"):
                    continue
            except PartyFailedError as error:
                failures.append(error)
            adapting.remove(individual)
        if adapting:
            sleep(POLL_SECONDS)
    if failures:
        parties = dict.fromkeys(party for failure in failures for party in failure.parties)
        raise PartyFailedError("; ".join(dict.fromkeys(map(str, failures))), *parties)
    on_event("the round is complete")


class PartyFailedError(RunFailedError):
    """Parties refused a command, or their work failed; ``parties`` are their own names for themselves."""

    def __init__(self, text: str, *parties: str) -> None:
        super().__init__(text)
        self.parties = parties


class _Party:
    """A node as the relay sees it."""

    def __init__(self, exchange: Exchange, node: int, party: str) -> None:
        self._exchange = exchange
        self._node = node
        self.party = party

    def order(
        self, word: str, *, words: Mapping[str, str] | None = None, parts: Mapping[str, bytes] | None = None
    ) -> Frame:
        """The answer to a command."""
        answer = self._exchange(self._node, Frame(word, fields=words or {}, parts=parts or {}))
        if answer.name == "refused":
            code = _word(answer, "code", "no code")
            raise PartyFailedError(f"{self.party} refused {word!r} ({code}); its own log says why", self.party)
        return answer

    def parts(self, answer: Frame, *names: str) -> dict[str, bytes]:
        """The named parts of this party's answer, and no others."""
        for name in names:
            if name not in answer.parts:
                raise PartyFailedError(f"{self.party} gave an answer without its {name}", self.party)
        return {name: answer.parts[name] for name in names}

    def works(self, job: str) -> bool:
        """Whether the work still goes on; raises an error if it failed, or if a restarted node lost it."""
        words = self.order("status").fields
        state = words.get("state") if words.get("job") == job else "lost"
        if state not in ("working", "done"):
            raise PartyFailedError(f"{job!r} failed at {self.party}; its own log says why", self.party)
        return state == "working"


def _inherit(collective: _Party, individual: _Party, form: str, on_event: Callable[[str], None]) -> None:
    """One form of learngene to one individual: request, publication, inheritance, receipt."""
    request = individual.parts(individual.order("request", words={"form": form}), "request")
    answer = collective.order("publish", parts=request)
    if answer.name == "abort":
        individual.order("abort", parts=collective.parts(answer, "abort"))
        raise PartyFailedError(
            f"{collective.party} gives {individual.party} nothing: it withdrew {form!r}", collective.party
        )
    bundle = collective.parts(answer, "release", "grant", "blob")
    receipt = individual.parts(individual.order("inherit", parts=bundle), "receipt")
    collective.order("receipt", parts=receipt)
    on_event(f"{individual.party} inherited {form!r} ({len(bundle['blob'])} bytes)")


def _roles(ask: Exchange, nodes: Sequence[int]) -> tuple[_Party, list[_Party]]:
    collectives: list[_Party] = []
    individuals: list[_Party] = []
    for node in nodes:
        answer = ask(node, Frame("status"))
        if answer.name == "refused":
            code = _word(answer, "code", "no code")
            raise RunFailedError(f"a node does not say what it is ({code}); is its node process running?")
        party = _Party(ask, node, _word(answer, "party", str(node)))
        (collectives if answer.fields.get("role") == "collective" else individuals).append(party)
    if len(collectives) != 1 or not individuals:
        counts = f"{len(collectives)} and {len(individuals)}"
        raise RunFailedError(f"a round needs one collective and at least one individual; here are {counts}")
    names = [party.party for party in (*collectives, *individuals)]
    if len(set(names)) != len(names):
        raise RunFailedError(f"two nodes have the same name: {', '.join(sorted(names))}; give each its own `party`")
    return collectives[0], sorted(individuals, key=lambda individual: individual.party)


def _word(answer: Frame, name: str, otherwise: str) -> str:
    """A text of a node for people, made safe to show; it can be anything."""
    return visible_name(answer.fields.get(name, otherwise), length=64)


def _patient(exchange: Exchange, sleep: Callable[[float], None], check_alive: Callable[[], None]) -> Exchange:
    def repeat(node: int, command: Frame) -> Frame:
        answer = exchange(node, command)
        for _ in range(_ATTEMPTS - 1):
            if answer.name != "refused" or answer.fields.get("code") != UNREACHABLE:
                return answer
            check_alive()
            sleep(POLL_SECONDS)
            answer = exchange(node, command)
        return answer

    return repeat


def exchange_over(grid: Grid, check_alive: Callable[[], None], *, timeout: float = 900.0) -> Exchange:
    """Commands and answers as Flower messages, each answered within ``timeout`` seconds or counted as unreachable.

    ``check_alive`` is called while an answer is waited for; it raises an error if waiting has become pointless.
    """

    def exchange(node: int, command: Frame) -> Frame:
        message = Message(to_record(command), dst_node_id=node, message_type=MESSAGE_TYPE)
        # Not send_and_receive: it would wait for the whole time whatever happens.
        sent = list(grid.push_messages([message]))
        deadline, pause = time.monotonic() + timeout, 0.05
        while sent and time.monotonic() < deadline:
            for reply in grid.pull_messages(sent):
                return _answer(reply)
            check_alive()
            time.sleep(pause)
            pause = min(1.0, 1.5 * pause)
        return _unreachable()

    return exchange


def check_flower() -> None:
    """Raise an error if Flower has given up: its main thread has ended, and only the ServerApp's thread is left.

    Raises:
        RunFailedError: it has.
    """
    if not threading.main_thread().is_alive():
        raise RunFailedError(FLOWER_ENDED)


def _answer(reply: Message) -> Frame:
    if reply.has_error():
        logger.warning("a courier failed: %s", visible_name(str(reply.error.reason), length=_LONGEST_REASON))
        return _unreachable()
    try:
        return from_record(reply.content)
    except RefusedError as error:
        logger.warning("a courier's answer is not a frame: %s", visible_line(str(error)))
        return _unreachable()


def _unreachable() -> Frame:
    return Frame("refused", fields={"code": UNREACHABLE})


def _wait_for_nodes(grid: Grid, count: int, patience: float) -> Sequence[int]:
    deadline = time.monotonic() + patience
    nodes: Iterable[int] = []
    while time.monotonic() < deadline:
        nodes = sorted(grid.get_node_ids())
        if len(nodes) >= count:
            return nodes
        time.sleep(1.0)
    raise RunFailedError(
        f"{len(list(nodes))} SuperNodes are connected after {patience:.0f} seconds, {count} are needed"
    )


def deployment_settings(config: Mapping[str, object]) -> tuple[list[str], int, float]:
    """Forms, number of individuals and seconds of patience from a run configuration; what is missing has its default.

    Raises:
        InputError: a value is wrong.
    """
    forms = [form.strip() for form in str(config.get("forms", DEFAULT_FORMS)).split(",") if form.strip()]
    individuals, patience = config.get("individuals", 1), config.get("patience", 120)
    if not forms:
        _wrong("forms", "name at least one form, such as condensed")
    if not isinstance(individuals, int) or isinstance(individuals, bool) or individuals < 1:
        _wrong("individuals", "a whole number from 1")
    if not isinstance(patience, int | float) or isinstance(patience, bool) or patience <= 0:
        _wrong("patience", "seconds, more than 0")
    return forms, individuals, float(patience)


def _wrong(key: str, expected: str) -> NoReturn:
    raise InputError(f"run configuration: {key}: {expected}")
