"""Attacks on commands that an operator types, by files of a node that was taken over, or of a stranger.

These commands are not confined: they believe what they read there in nothing that decides.
"""

import base64
import contextlib
import hashlib
import http.client
import http.server
import importlib.util
import json
import os
import shutil
import subprocess
import threading
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import tomli_w
from PIL import Image

from collective_node.annotation.server import COOKIE
from collective_node.annotation.unknown_set import UnknownSet, cycle_folder, store
from protocol.confinement import isolated_start
from protocol.errors import InputError, RunFailedError
from protocol.exchange.individual_endpoint import IndividualEndpoint
from protocol.exchange.individual_ledger import IndividualLedger
from protocol.node import confine
from protocol.node.configuration import read
from protocol.node.endpoints import known_status, node_of, open_endpoint
from protocol.node.events import KINDS
from protocol.transport.frame import Frame
from sims.boundary.acts.act import DONE, Outcome
from sims.boundary.acts.expectation import Holds, files, protocol
from sims.boundary.attempt import Attack, Escaped, Failed, Found, NotEnforced, Refusal
from sims.boundary.hostile_program import ATTACK, outcome_of
from sims.boundary.sites import HOSTILE, Site, make_sites, started
from sims.leakage.attacked_run import released
from sims.run.progress import RunWatcher
from sims.run.run_folder import RECORD_FILE, RunRecord, state_folder

_PATIENCE = 60.0
# What a node writes to say who may look at its images: its own place, and a cookie that somebody else knows.
_PLACE, _KNOWN = "0" * 32, "known"
#: Kinds of events; and brackets, fewer than a configuration may have bytes.
_MANY, _DEEP = 5_000, 60_000


def operator_attacks(folder: Path) -> list[Attack]:
    """All of them; each sets up what it needs. ``folder``: of its own, and short, as sockets lie in it."""
    annotate = "" if importlib.util.find_spec("sklearn") else "the page needs the extra annotate"

    def attack(
        number: int, name: str, tries: str, holds: Holds, control: Callable[[Path], bool],
        confined: Callable[[Path], Found], lacks: str = "",
    ) -> Attack:  # fmt: skip
        return Attack(
            f"at a command of the operator's: {name}",
            "starts",
            tries,
            holds,
            lambda: control(_made(folder / f"c{number}")),
            lambda: confined(_made(folder / f"{number}")),
            lacks,
        )

    return [
        attack(
            0, "who may look at unknown images", "the node writes the page's port, place and a cookie that others know",
            protocol("GET", "404"), _fetched_from_a_page_that_believes, _fetched, annotate,
        ),
        attack(
            1, "what the operator's browser opens", "the node writes into the file that the browser is given",
            files("open"), _written_by_an_unconfined_node, _written, annotate,
        ),
        attack(
            2, "a model folder with a configuration", "it names the node's state, and a root of a stranger's",
            protocol("ask for the status", "InputError"), _forgotten, _asked_by_a_model,
        ),
        attack(
            3, "a run with a configuration", "it names another's state; the run is given to learngene leakage",
            protocol("open the run", "InputError"), _forgotten, _asked_by_a_run,
        ),
        attack(
            4, "a configuration of sixty thousand brackets", "its reader calls itself until it breaks down",
            protocol("read", "InputError"), _breaks_down, _read,
        ),
        attack(
            5, "events of ever new kinds", "each would have a row of a run's progress of its own",
            protocol("show", "passed over"), lambda home: len(_kinds(_flooded(home))) == _MANY, _shown,
        ),
    ]  # fmt: skip


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def _ask(site: Site, act: str, aims: Mapping[str, str]) -> Outcome:
    return outcome_of(site.ask(Frame(ATTACK, fields={**aims, "act": act})))


# --- The annotation page --------------------------------------------------------------------------------------------


def _plant_images(site: Site, *, unconfined: bool) -> None:
    """Let a hostile node leave images, which hold its own data, and who may look at them."""
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[0].reshape(-1)[: len(site.marker)] = np.frombuffer(site.marker, np.uint8)
    made = site.folder.parent / "made"
    store(cycle_folder(made, 1), UnknownSet(pixels, np.ones(2), np.ones((2, 4), np.float32), ("a", "b")))
    content = {path.name: path.read_bytes() for path in cycle_folder(made, 1).iterdir()}
    digest = hashlib.sha256(_KNOWN.encode()).hexdigest()
    content["access.json"] = json.dumps({"port": 0, "place": _PLACE, "cookies": [digest]}).encode()
    with started(site, module=HOSTILE, unconfined=unconfined):
        for name, data in content.items():
            path = cycle_folder(site.node.state, 1) / name
            found = _ask(site, "plant_file", {"path": str(path), "content": base64.b64encode(data).decode()})
            if found.evidence != DONE:
                raise RunFailedError(f"{name} was not planted: {found}")
    for path in cycle_folder(site.node.state, 1).iterdir():
        path.chmod(0o600)


@contextlib.contextmanager
def _page(site: Site, *options: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """The real command, and the address that it prints."""
    words = isolated_start.command("collective_node", ["annotate", "--config", str(site.config), *options])
    with subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, env={**os.environ, **(environment or {})}
    ) as process:
        try:
            assert process.stdout is not None
            yield next(line.strip() for line in process.stdout if "http://" in line)
        finally:
            process.kill()


def _get(port: int) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    connection.request("GET", f"/{_PLACE}/images/0.png", headers={"Cookie": f"{COOKIE}={_KNOWN}"})
    return connection.getresponse()


def _fetched(home: Path) -> Found:
    site = make_sites(home).collective
    _plant_images(site, unconfined=not confine.offered())
    with _page(site, "--no-browser") as address:
        answer = _get(urlsplit(address).port or 0)
        return _judged(answer, site.marker)


def _judged(answer: http.client.HTTPResponse, marker: bytes) -> Found:
    body = answer.read()
    if answer.status != http.HTTPStatus.OK:
        return Refusal("GET", str(answer.status))
    if Image.open(BytesIO(body)).tobytes().startswith(marker):
        return Escaped("the node's own data came out of the page")
    return Failed("another image came")


def _fetched_from_a_page_that_believes(home: Path) -> bool:
    """The control: a page that lets in whom the file in its folder names."""
    site = make_sites(home).unprotected
    _plant_images(site, unconfined=True)
    folder = cycle_folder(site.node.state, 1)
    kept = json.loads((folder / "access.json").read_text())

    class Believing(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given = (self.headers.get("Cookie") or "").removeprefix(f"{COOKIE}=")
            known = hashlib.sha256(given.encode()).hexdigest() in kept["cookies"]
            self.send_response(200 if known and self.path.startswith(f"/{kept['place']}/") else 403)
            self.end_headers()
            picture = BytesIO()
            Image.fromarray(np.load(folder / "images.npy")[0]).save(picture, "PNG")
            self.wfile.write(picture.getvalue())

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    with http.server.HTTPServer(("127.0.0.1", kept["port"]), Believing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            return isinstance(_judged(_get(server.server_port), site.marker), Escaped)
        finally:
            server.shutdown()


@contextlib.contextmanager
def _opened(site: Site, home: Path) -> Iterator[Path]:
    """The file that the page's command gives to a browser, while it is there."""
    given, browser = home / "given", home / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > "{given}.new" && mv "{given}.new" "{given}"\n')
    browser.chmod(0o700)
    with _page(site, environment={"DISPLAY": ":0", "BROWSER": str(browser)}):
        deadline = time.monotonic() + _PATIENCE
        while not given.exists():
            if time.monotonic() > deadline:
                raise RunFailedError("no browser was opened")
            time.sleep(0.05)
        yield Path(given.read_text().removeprefix("file://"))


def _write_for_the_browser(site: Site, home: Path, *, unconfined: bool) -> tuple[bool, Outcome]:
    """Let a hostile node write into that file; whether it has, and what came of it."""
    _plant_images(site, unconfined=unconfined)
    with started(site, module=HOSTILE, unconfined=unconfined), _opened(site, home) as path:
        outcome = _ask(site, "write_file", {"writable": str(path), "token": "the node's"})
        return "the node's" in path.read_text(), outcome


def _written_by_an_unconfined_node(home: Path) -> bool:
    return _write_for_the_browser(make_sites(home).unprotected, home, unconfined=True)[0]


def _written(home: Path) -> Found:
    if not confine.offered():
        return NotEnforced("this kernel does not confine a process")
    written, outcome = _write_for_the_browser(make_sites(home).collective, home, unconfined=False)
    return Escaped("the browser opens what the node wrote") if written else Refusal(outcome.call, outcome.error)


# --- A stranger's configuration -------------------------------------------------------------------------------------


def _strange(home: Path) -> tuple[Site, Site]:
    """A victim who has believed its trust store; and a stranger's site whose configuration names the victim's state."""
    victim, stranger = (make_sites(_made(home / name)).individual for name in ("victim", "stranger"))
    open_endpoint(victim.node, IndividualEndpoint, new=True)
    content = read(stranger.config)
    table = content["node"]
    assert isinstance(table, dict)
    stranger.config.write_text(tomli_w.dumps({"node": {**table, "data": ".", "state": str(victim.node.state)}}))
    return victim, stranger


def _believes(victim: Site) -> object:
    with contextlib.closing(IndividualLedger(victim.node.state, reading=True)) as ledger:
        return ledger.trust_seen()


def _forgotten(home: Path) -> bool:
    """The control: whoever starts with it as its operator does makes the ledger follow the stranger's root."""
    victim, stranger = _strange(home)
    before = _believes(victim)
    open_endpoint(stranger.node, IndividualEndpoint, new=True)
    return _believes(victim) != before


def _refused(call: str, victim: Site, use: Callable[[], object]) -> Found:
    before = _believes(victim)
    try:
        use()
    except InputError as error:
        end: Found = Refusal(call, "InputError", str(error))
    else:
        end = Failed("it was believed")
    return Escaped("the node's memory has changed") if _believes(victim) != before else end


def _asked_by_a_model(home: Path) -> Found:
    victim, stranger = _strange(home)
    ask = {"run_id": "0" * 32, "release": "0" * 64, "signer": "0" * 64}
    return _refused("ask for the status", victim, lambda: known_status(stranger.config, **ask))


def _asked_by_a_run(home: Path) -> Found:
    victim, stranger = _strange(home)
    run = _made(home / "run")
    (run / RECORD_FILE).write_text(RunRecord(run_id="0" * 32, status="finished", started="").model_dump_json())
    shutil.move(stranger.folder, _made(run / "nodes") / "individual-1")
    assert node_of(run / "nodes" / "individual-1" / "config.toml", "individual").state == victim.node.state
    return _refused("open the run", victim, lambda: released(run))


def _breaks_down(home: Path) -> bool:
    """The control: Python's own reader."""
    try:
        tomllib.loads(_brackets(home).read_text())
    except RecursionError:
        return True
    return False


def _read(home: Path) -> Found:
    try:
        read(_brackets(home))
    except InputError as error:
        return Refusal("read", "InputError", str(error))
    except RecursionError:
        return Escaped("the command broke down")
    return Failed("it was read")


def _brackets(home: Path) -> Path:
    (home / "config.toml").write_text("a = " + "[" * _DEEP)
    return home / "config.toml"


# --- A run's progress -----------------------------------------------------------------------------------------------


def _flooded(run: Path) -> Path:
    """A run whose individual writes events of ever new kinds."""
    log = _made(state_folder(run, "individual-1")) / "events.jsonl"
    words = ("".join(chr(97 + number // 26**place % 26) for place in range(6)) for number in range(_MANY))
    lines = ({"time": n, "event": word, "done": 1, "total": 9, "text": "x"} for n, word in enumerate(words))
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return log


def _kinds(log: Path) -> set[str]:
    """The control: every kind that a log names."""
    return {json.loads(line)["event"] for line in log.read_text().splitlines()}


def _shown(home: Path) -> Found:
    log = _flooded(home)
    with log.open("a") as file:
        file.write(json.dumps({"time": _MANY, "event": "task", "done": 1, "total": 9, "text": "x"}) + "\n")
    kinds = {event.kind for event in RunWatcher(home).poll()}
    if not kinds <= set(KINDS):
        return Escaped(f"{len(kinds)} rows")
    return Refusal("show", "passed over") if kinds == {"task"} else Failed("an honest event is not shown either")
