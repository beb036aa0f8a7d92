"""The main job as a Flower ServerApp: cuts a world, starts the node processes, runs the round, writes the report."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import tomli_w
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import TypeAdapter

from protocol.errors import FLOWER_ENDED, InputError, LearngeneError, RunFailedError, StorageFailedError
from protocol.files.atomic import write_atomically
from protocol.files.private_folders import private_folder
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.key_file import Unlock, make_key_file
from protocol.keys.signing_key import SigningKey
from protocol.node import confine
from protocol.node.events import Events
from protocol.node.server import CANNOT
from protocol.output import say as print_line
from protocol.transport.local_socket import make_secret
from protocol.transport.relay import PartyFailedError, check_flower, exchange_over, run_round
from protocol.transport.simulation_paths import simulation_folder, simulation_paths
from protocol.trust.role import Role
from protocol.trust.trust_file import write_trust
from protocol.trust.trust_store import TrustStore
from protocol.visible_text import visible_line
from sims.data.datasets import CACHE, DATASETS
from sims.data.images import load_source
from sims.data.worlds import load_world, make_world
from sims.results import report
from sims.results.collection import collect
from sims.run.environment import REACH, HandedOver, handed_over
from sims.run.options import DATA_VARIABLE, Options, Value, read_options
from sims.run.processes import NodeProcesses
from sims.run.reach import Reach
from sims.run.run_folder import OpenRun, open_prepared, prepare, read_settings
from sims.run.settings import RunSettings, check_connected, check_machine, resolve
from sims.run.stopwatch import Stopwatch

#: Start of the line in the run's log that names its folder.
FOLDER_LINE = "run folder: "

#: Validity of a run's trust stores in seconds, longer than any run is resumed in practice.
_TRUST_SECONDS = 365 * 24 * 3600

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Do one whole run.

    Raises:
        InputError: a setting is wrong. RunFailedError: a node or the round failed. Flower then calls the run failed,
            and ``run.json`` says why.
    """
    try:
        _run(grid, context)
    except LearngeneError as error:
        # Flower keeps its log in UTF-8, and shows nothing of an error that names a file whose name is not.
        error.args = (visible_line(str(error)),)
        raise


def _run(grid: Grid, context: Context) -> None:
    nodes = _connected_nodes(grid)
    # Only `learngene run` says who reaches it; elsewhere the SuperLink is Flower's own.
    reach: Reach = TypeAdapter(Reach).validate_python(os.environ.get(REACH, "machine"))
    config, handed = dict[str, Value](context.run_config), handed_over()
    run, settings = open_configured(
        read_options(config), handed, connected=len(nodes) - 1, reach=reach, now=datetime.now(UTC)
    )
    if handed is None:
        print_line(whose_environment(settings, os.environ))
    print_line(f"{FOLDER_LINE}{run.folder}")
    try:
        simulate(run, settings, grid, nodes, flower_run=context.run_id)
    except BaseException as error:
        with contextlib.suppress(StorageFailedError):  # the process that started the run tries again
            run.end(visible_line(str(error)) or type(error).__name__)
        raise
    finally:
        run.close()


def whose_environment(settings: RunSettings, environment: Mapping[str, str]) -> str:
    """A line about what an app of Flower's own command has from its SuperLink: it may have been started long ago, in
    another shell and another environment."""
    images = "the stand-in" if settings.stand_in else settings.data or DATASETS[settings.dataset].origin
    from_variable = settings.data is not None and str(settings.data) == environment.get(DATA_VARIABLE)
    of_start = f" ({DATA_VARIABLE} when the SuperLink was started)" if from_variable else ""
    return f"environment: {sys.prefix}, learngene from {Path(__file__).parents[2]}; images: {images}{of_start}"


def open_configured(
    options: Options, handed: HandedOver | None, *, connected: int, reach: Reach, now: datetime
) -> tuple[OpenRun, RunSettings]:
    """Open the run that is asked for: in the folder that ``learngene run`` hands over, with the settings in it, or
    else by a run configuration.

    Args:
        options: of the run configuration.
        handed: the folder, if one was handed over; of the options only the dataset counts then.
        connected: individuals that are connected.
        reach: who reaches the run.
        now: the run's start.

    Raises:
        InputError: a setting is wrong, or cannot be met on this machine; the folder cannot be opened.
    """
    if handed is not None:
        folder, settings = handed.folder, read_settings(handed.folder).settings
        if settings.dataset != options.dataset:
            raise InputError(f"{folder} holds settings of {settings.dataset}; start the app sims/{settings.dataset}")
        check_connected(settings.individuals, connected)
        check_machine(settings)
    else:
        settings = resolve(options, environment=os.environ, individuals=connected)
        check_machine(settings)
        folder = prepare(settings, now=now)
    resume = options.resume if handed is None else handed.resume
    return open_prepared(folder, resume=resume, reach=reach, now=now), settings


def simulate(run: OpenRun, settings: RunSettings, grid: Grid, nodes: list[int], *, flower_run: int) -> None:
    """Do a run in its open folder, from the images to the report.

    Args:
        nodes: Flower's numbers of the simulated SuperNodes.
        flower_run: Flower's number of the run; the sockets' paths follow from it.
    """
    starter = os.getppid()
    events = Events(run.folder / "events.jsonl")

    def say(text: str) -> None:
        print_line(text)
        events.append("run", 0, 0, text)

    clock = Stopwatch()
    _prepare_world(run, settings, say)
    clock.lap("world")
    parties = _parties(settings)
    sites = [_Site(run.folder, *party, *simulation_paths(flower_run, number)) for number, party in enumerate(parties)]
    with ExitStack() as stack:
        runtime = private_folder(private_folder(simulation_folder(flower_run).parent) / str(flower_run))
        stack.callback(shutil.rmtree, runtime, ignore_errors=True)
        root = _make_keys(sites)
        processes = stack.enter_context(NodeProcesses())
        for site in sites:
            site.configure(run.record.run_id, root, settings)
            processes.start(site.role, site.party, site.home / "config.toml", socket=site.socket, state=site.state)
        processes.wait_until_listening()
        clock.lap("start")
        say(f"{len(sites)} node processes: {', '.join(f'{n.party} (pid {n.process.pid})' for n in processes.nodes)}")

        def check_alive() -> None:
            check_flower()
            # If the process that started Flower's simulation has ended, Flower itself may go on without end.
            if os.getppid() != starter:
                raise RunFailedError(FLOWER_ENDED)
            processes.check_alive()

        exchange = exchange_over(grid, check_alive)
        try:
            run_round(exchange, nodes, settings.collective.forms, say, time.sleep, check_alive)
        except PartyFailedError as error:
            raise _with_reasons(error, processes) from error
        clock.lap("round")
        peaks = processes.peak_memory()
    run.update(seconds=clock.seconds, peak_memory=peaks)
    say("the results are collected, and the report is made of them")
    collect(run.folder)
    say(f"report: {report.write(run.folder)}")
    run.update(status="finished")


@dataclass(frozen=True)
class _Site:
    """Paths of one party's files in a run folder."""

    folder: Path
    role: Role
    party: str
    socket: Path
    secret: Path

    @property
    def home(self) -> Path:
        """The folder of the files with which the node is started; it cannot write them."""
        return self.folder / "nodes" / self.party

    @property
    def state(self) -> Path:
        return self.home / "state"

    @property
    def key(self) -> Path:
        return self.folder / "keys" / f"{self.party}.key"

    @property
    def key_file(self) -> Path:
        return self.folder / "keys" / "key.secret"

    @property
    def encryption_key(self) -> Path | None:
        return self.folder / "keys" / f"{self.party}.encryption.key" if self.role == "individual" else None

    @property
    def trust(self) -> Path:
        return self.home / "trust.json"

    def _inside(self, path: Path) -> str:
        """A path of the run's folder as the node's configuration names it: the whole folder may be moved."""
        return os.path.relpath(path, self.home)

    def configure(self, run_id: str, root: str, settings: RunSettings) -> None:
        """Write the node's configuration file and a fresh socket secret. ``root``: the public root key, hexadecimal."""
        make_secret(self.secret)
        collective = self.role == "collective"
        own = settings.collective if collective else settings.individual
        tables: dict[str, Mapping[str, object]] = {
            "node": {
                "role": self.role,
                "party": self.party,
                "data": self._inside(self.folder / "world" / self.party),
                "state": self._inside(self.state),
                "socket": str(self.socket),
                "secret": str(self.secret),
                "key": self._inside(self.key),
                "encryption_key": "none" if self.encryption_key is None else self._inside(self.encryption_key),
                "key_file": self._inside(self.key_file),
                "trust": self._inside(self.trust),
                "root": root,
                "run_id": run_id,
                "device": settings.collective_device if collective else settings.individual_device,
                "threads": settings.threads,
                "seed": settings.seed,
                # If the kernel can confine a process, a simulation's nodes are confined as a deployment's are.
                "unconfined": not confine.offered(),
            },
            self.role: {
                # TOML has no null.
                name: "none" if value is None else value
                for name, value in own.model_dump(mode="json").items()
            },
        }
        write_atomically(self.home / "config.toml", tomli_w.dumps(tables).encode(), mode=0o600)


def _prepare_world(run: OpenRun, settings: RunSettings, say: Callable[[str], None]) -> None:
    """Cut the world, or open the existing one of a resumed run."""
    folder = run.folder / "world"
    if folder.exists():
        world = load_world(folder)
    else:
        say("the images are loaded, and each party's own are put in its folder")
        source = load_source(
            settings.data,
            dataset=settings.dataset,
            stand_in=settings.stand_in,
            choice=settings.choice,
            cache=settings.cache or CACHE,
            say=say,
        )
        world = make_world(source, source.division, settings.plan, settings.seed, folder)
    dataset = world.description.dataset
    say(" ".join(filter(None, (f"the images are {dataset.name} ({dataset.source})", world.notice))))


def _parties(settings: RunSettings) -> list[tuple[Role, str]]:
    """Role and name of each party in the order of Flower's nodes: the collective first."""
    individuals: list[tuple[Role, str]] = [("individual", f"individual-{n + 1}") for n in range(settings.individuals)]
    return [("collective", "collective"), *individuals]


def _connected_nodes(grid: Grid) -> list[int]:
    """The simulated SuperNodes; Flower registers them all at once, a moment after it has started this app.

    Raises:
        RunFailedError: fewer than two.
    """
    nodes: list[int] = []
    deadline = time.monotonic() + 30.0
    while time.monotonic() < deadline:
        before, nodes = nodes, sorted(grid.get_node_ids())
        if len(nodes) >= 2 and nodes == before:
            return nodes
        time.sleep(0.5)
    raise RunFailedError(
        f"a run needs a collective and at least one individual, here is {len(nodes)} node; "
        'use --federation-config "num-supernodes=2"'
    )


def _make_keys(sites: list[_Site]) -> str:
    """Make every party's keys, and its trust store with its own key and its partners'. A resumed run keeps them.

    A simulation is no boundary, so one key file opens them all.

    Returns:
        The public half of the root key that signs the trust stores, in hexadecimal.
    """
    key_file = sites[0].key_file
    folder = private_folder(key_file.parent)
    if not key_file.exists():
        make_key_file(key_file)
    unlock = Unlock.key_file(key_file)
    root = _signing_key(folder / "root.key", unlock)
    public: dict[str, str] = {}
    for site in sites:
        private_folder(site.home)
        private_folder(site.state)
        public[site.party] = _signing_key(site.key, unlock).public_hex
        if site.encryption_key is not None and not site.encryption_key.exists():
            EncryptionKey.generate().save(site.encryption_key, unlock)
    for site in sites:
        if site.trust.exists():
            continue
        store = TrustStore(root=root.public_hex, expires_at=int(time.time()) + _TRUST_SECONDS)
        for other in sites:
            # The store holds its own key and those of the other role: individuals do not know each other.
            if other.role != site.role or other.party == site.party:
                store = store.with_key(public[other.party], other.role, other.party)
        write_trust(site.trust, store, root)
    return root.public_hex


def _signing_key(path: Path, unlock: Unlock) -> SigningKey:
    if not path.exists():
        SigningKey.generate().save(path, unlock)
    return SigningKey.load(path, unlock)


def _with_reasons(error: PartyFailedError, processes: NodeProcesses) -> LearngeneError:
    """Add the reasons in the failed nodes' own logs to the relay's error.

    In a simulation one person owns all logs, and nothing of them crosses the protocol. The error is an InputError if
    every node was given wrong input: a second run would fail in the same way.
    """
    failed = [node for node in processes.nodes if node.party in error.parties]
    reasons = [f"{node.party}: {node.last_error}" for node in failed if node.last_error]
    kind = InputError if failed and all(CANNOT in node.last_error for node in failed) else RunFailedError
    return kind(f"{error} ({'; '.join(reasons)})" if reasons else str(error))
