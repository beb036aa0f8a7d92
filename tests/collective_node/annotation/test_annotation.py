"""Naming unknown images: the log of labels, the groups, who is let in, and what the page's server answers."""

import dataclasses
import hashlib
import io
import itertools
import json
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics.pairwise import cosine_similarity
from starlette.testclient import TestClient

from collective_node.annotation.access import Access
from collective_node.annotation.annotation_session import usual_port
from collective_node.annotation.clusters import clusters
from collective_node.annotation.labels import (
    LABELS_FILE,
    Decision,
    LabelBook,
    Labels,
    Verdict,
    clean_name,
    read,
    wait_for_labels,
    waiting_folder,
)
from collective_node.annotation.server import MAX_BODY_BYTES, make_app
from collective_node.annotation.unknown_set import UnknownSet, cycle_folder, store
from collective_node.cli import app
from protocol.commands.init_command import initialise
from protocol.errors import InputError, RunFailedError, StorageFailedError
from protocol.keys.signing_key import SigningKey
from protocol.visible_text import is_plain
from tests.collective_node.made_unknown_set import unknown_set
from tests.two_folders import refused, run

KNOWN = ("apple", "maple tree")


def decision(verdict: Verdict, *images: int, name: str | None = None) -> Decision:
    return Decision(id=os.urandom(8).hex(), verdict=verdict, images=images, name=name)


def open_book(folder: Path, images: int = 10) -> LabelBook:
    return LabelBook(folder, images=images, known=KNOWN)


# ------------------------------------------------------------------------------------------------------------ labels


def test_the_last_word_on_an_image_counts(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        book.decide(decision("named", 3, 1, 2, name="otter"))
        book.decide(decision("dismissed", 2, 5))
        book.decide(decision("cleared", 1))
        book.decide(decision("named", 5, name="seal"))
    assert read(tmp_path) == Labels({3: "otter", 2: None, 5: "seal"}, finished=False)
    assert read(tmp_path).dismissed == (2,)
    assert read(tmp_path).classes() == {"otter": (3,), "seal": (5,)}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.sampled_from(["named", "dismissed", "cleared", "undone"]), st.integers(0, 3)), max_size=12)
)
def test_an_undone_decision_was_never_made(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[Verdict, int]]
) -> None:
    undone, plain = tmp_path_factory.mktemp("undone"), tmp_path_factory.mktemp("plain")
    standing: list[Decision] = []
    with pytest.MonkeyPatch.context() as patch, open_book(undone) as book:
        patch.setattr(os, "fsync", lambda descriptor: None)  # for speed
        for verdict, image in steps:
            made = (
                decision("undone")
                if verdict == "undone"
                else decision(verdict, image, image + 1, name=f"class {image}" if verdict == "named" else None)
            )
            book.decide(made)
            if verdict != "undone":
                standing.append(made)
            elif standing:
                standing.pop()
            assert book.can_undo == bool(standing)
    with pytest.MonkeyPatch.context() as patch, open_book(plain) as book:
        patch.setattr(os, "fsync", lambda descriptor: None)
        for made in standing:
            book.decide(made)
    assert read(undone) == read(plain)


def test_a_decision_that_arrives_twice_counts_once_also_after_a_restart(tmp_path: Path) -> None:
    first, back = decision("named", 1, name="otter"), decision("undone")
    with open_book(tmp_path) as book:
        for sent in (first, decision("named", 2, name="otter"), back, back, first):
            book.decide(sent)
    with open_book(tmp_path) as book:
        book.decide(back)
        book.decide(first)
        assert book.labels.given == {1: "otter"}
        assert book.revision == 3


def test_a_log_cut_anywhere_has_the_decisions_before_the_cut(tmp_path: Path) -> None:
    states = [Labels()]
    with open_book(tmp_path) as book:
        for made in (decision("named", 1, 2, name="ötter"), decision("dismissed", 3), decision("undone")):
            book.decide(made)
            states.append(book.labels)
    log = (tmp_path / LABELS_FILE).read_bytes()
    for end in range(len(log) + 1):
        (tmp_path / LABELS_FILE).write_bytes(log[:end])
        assert read(tmp_path) == states[log[:end].count(b"\n")]
        # Who writes next is not joined to half a line.
        with open_book(tmp_path) as book:
            book.decide(decision("named", 9, name="new"))
        assert read(tmp_path).given == states[log[:end].count(b"\n")].given | {9: "new"}


def test_a_last_line_whose_blocks_never_reached_the_disk_does_not_count(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        book.decide(decision("dismissed", 3))
    with (tmp_path / LABELS_FILE).open("ab") as file:
        file.write(bytes(40) + b'images":[1]}\n')
    assert read(tmp_path).given == {3: None}
    with open_book(tmp_path) as book:
        assert book.revision == 1
        book.decide(decision("dismissed", 4))
    assert read(tmp_path).given == {3: None, 4: None}


def test_a_damaged_line_before_others_is_an_error(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        for image in range(3):
            book.decide(decision("dismissed", image))
    lines = (tmp_path / LABELS_FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / LABELS_FILE).write_bytes(lines[0] + lines[1].replace(b"dismissed", b"dism\0ssed") + lines[2])
    with pytest.raises(InputError, match="line 2 is damaged"):
        read(tmp_path)
    with pytest.raises(InputError, match="line 2 is damaged"):
        open_book(tmp_path)


def test_a_reader_beside_the_writer_sees_whole_decisions_only(tmp_path: Path) -> None:
    seen: list[set[int]] = []
    done = threading.Event()

    def watch() -> None:
        while not done.is_set():
            seen.append(set(read(tmp_path).given))

    with open_book(tmp_path, images=5000) as book:
        watcher = threading.Thread(target=watch)
        watcher.start()
        for first in range(0, 5000, 100):
            book.decide(decision("named", *range(first, first + 100), name="otter"))
        done.set()
        watcher.join()
    assert seen
    assert all(given == set(range(len(given))) and len(given) % 100 == 0 for given in seen)


def test_a_decision_is_durable_before_it_is_answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_book(tmp_path) as book:
        synced: list[int] = []
        monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
        book.decide(decision("dismissed", 1))
        assert synced == [(tmp_path / LABELS_FILE).stat().st_size]


def test_what_cannot_be_stored_is_not_decided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with open_book(tmp_path) as book:
        book.decide(decision("dismissed", 1))
        lost = decision("finished")
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StorageFailedError, match="No space left"):
                book.decide(lost)
        assert book.labels == read(tmp_path) == Labels({1: None})
        book.decide(lost)
    assert read(tmp_path).finished


def test_one_process_writes_at_a_time(tmp_path: Path) -> None:
    with open_book(tmp_path), pytest.raises(RunFailedError, match="another `collective-node annotate`"):
        open_book(tmp_path)
    open_book(tmp_path).close()
    assert stat.S_IMODE((tmp_path / LABELS_FILE).stat().st_mode) == 0o600


def test_after_the_end_nothing_changes(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        book.decide(decision("finished"))
        for late in (decision("dismissed", 1), decision("finished")):
            with pytest.raises(InputError, match="finished"):
                book.decide(late)
        assert read(tmp_path) == Labels({}, finished=True)


def test_a_class_of_one_image_cannot_be_learned_and_one_that_is_known_need_not_be(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        book.decide(decision("named", 1, name="otter"))
        book.decide(decision("named", 2, name="apple"))
        assert book.too_small == ["otter"]
        with pytest.raises(InputError, match="otter has one image"):
            book.decide(decision("finished"))
        book.decide(decision("named", 3, name="otter"))
        book.decide(decision("finished"))
    assert read(tmp_path).new_classes(KNOWN) == {"otter": (1, 3)}


def test_an_image_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        for image in (-1, 10):
            with pytest.raises(InputError, match="images 0 to 9"):
                book.decide(decision("dismissed", 4, image))
        assert book.revision == 0


def test_names_take_the_spelling_that_is_there(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        for image, name in enumerate(("Otter", "OTTER", "APPLE", "  maple   TREE ")):
            book.decide(decision("named", image, name=name))
        assert book.labels.given == {0: "Otter", 1: "Otter", 2: "apple", 3: "maple tree"}
        assert book.names == ["Otter", "apple", "maple tree"]


@pytest.mark.parametrize("text", ["", "   ", "x" * 65, "a\0b", "a\u202eb", "a\u200bb"])
def test_names_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="a name has"):
        clean_name(text)


@given(st.text(max_size=80))
def test_a_clean_name_is_clean(text: str) -> None:
    try:
        name = clean_name(text)
    except ValueError:
        return
    assert clean_name(name) == name
    assert 1 <= len(name) <= 64
    assert is_plain(name)


@pytest.mark.parametrize(
    "fields",
    [
        {"verdict": "named", "images": (1,)},
        {"verdict": "named", "name": "otter"},
        {"verdict": "dismissed"},
        {"verdict": "dismissed", "images": (1,), "name": "otter"},
        {"verdict": "undone", "images": (1,)},
        {"verdict": "finished", "images": (1,)},
        {"verdict": "praised", "images": (1,)},
        {"verdict": "dismissed", "images": ("1",)},
        {"verdict": "dismissed", "images": (1,), "more": 1},
        {"verdict": "dismissed", "images": (1,), "id": "short"},
    ],
)
def test_decisions_that_are_none(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="validation error"):
        Decision.model_validate({"id": "0" * 16} | fields)


def test_waiting_ends_with_the_last_decision(tmp_path: Path) -> None:
    with open_book(tmp_path) as book:
        steps = iter([decision("named", 1, 2, name="otter"), decision("dismissed", 3), decision("finished")])
        waited: list[float] = []

        def sleep(seconds: float) -> None:
            waited.append(seconds)
            book.decide(next(steps))

        labels = wait_for_labels(tmp_path, sleep=sleep, poll_seconds=7)
    assert labels == Labels({1: "otter", 2: "otter", 3: None}, finished=True)
    assert waited == [7, 7, 7]


def test_waiting_ends_where_it_has_become_pointless(tmp_path: Path) -> None:
    def check() -> None:
        raise RunFailedError("the node ends")

    with pytest.raises(RunFailedError, match="the node ends"):
        wait_for_labels(tmp_path, check_alive=check)
    with pytest.raises(InputError, match="there is no folder"):
        wait_for_labels(tmp_path / "gone")


def test_the_newest_unfinished_cycle_waits(tmp_path: Path) -> None:
    assert waiting_folder(tmp_path) is None
    for cycle in (1, 2, 3):
        store(cycle_folder(tmp_path, cycle), unknown_set())
    (tmp_path / "open-world" / ".cycle-0004.x.part").mkdir()
    for cycle in (3, 2, 1):
        assert waiting_folder(tmp_path) == cycle_folder(tmp_path, cycle)
        with open_book(cycle_folder(tmp_path, cycle)) as book:
            book.decide(decision("finished"))
    assert waiting_folder(tmp_path) is None


# ------------------------------------------------------------------------------------------------------------ groups


def test_groups_are_those_that_were_made_most_unknown_first() -> None:
    found = clusters(unknown_set())
    assert [set(cluster.images) for cluster in found] == [set(range(n, n + 16)) for n in (0, 16, 32)]


def test_confidence_is_mean_rank_times_mean_cosine_and_the_most_central_come_first() -> None:
    unknown = unknown_set()
    for cluster in clusters(unknown):
        ranks = [np.mean(unknown.scores <= unknown.scores[image]) for image in cluster.images]
        cosines = cosine_similarity(unknown.features[list(cluster.images)])
        pairs = [cosines[one, other] for one, other in itertools.combinations(range(len(cosines)), 2)]
        assert cluster.confidence == pytest.approx(np.mean(ranks) * np.mean(pairs), rel=1e-6)
        # Each row's sum is the cosine to the centre, but for a factor that all share.
        assert np.all(np.diff(cosines.sum(axis=1)) <= 1e-6)


def test_groups_do_not_depend_on_the_scale_of_scores_or_features() -> None:
    unknown = unknown_set()
    scale = np.random.default_rng(0).uniform(0.5, 2, (48, 1)).astype(np.float32)
    other = dataclasses.replace(unknown, scores=np.exp(unknown.scores) - 1e6, features=unknown.features * scale)
    for one, same in zip(clusters(unknown), clusters(other), strict=True):
        assert set(one.images) == set(same.images)
        assert one.confidence == pytest.approx(same.confidence, rel=1e-5)


@pytest.mark.parametrize("count", [1, 2, 16, 17])
def test_every_image_is_in_one_group_also_where_features_are_zero(count: int) -> None:
    unknown = UnknownSet(
        np.zeros((count, 2, 2, 1), np.uint8), np.zeros(count), np.zeros((count, 3), np.float32), ("apple",)
    )
    found = clusters(unknown)
    assert sorted(image for cluster in found for image in cluster.images) == list(range(count))
    assert {cluster.confidence for cluster in found} == {0.0}


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    refused(run(app, "annotate", "--config", tmp_path / "config.toml"), "sklearn", "learngene[annotate]")


# ------------------------------------------------------------------------------------------------------------ server


@dataclasses.dataclass
class Served:
    """A server at work, and a browser that was never there."""

    folder: Path
    book: LabelBook
    access: Access
    client: TestClient
    ended: list[bool]

    def path(self, name: str = "") -> str:
        return f"/{self.access.place}/{name}"

    def enter(self) -> None:
        assert self.client.get(self.access.address(8000)).status_code == 200

    def post(self, content: object, **headers: str) -> httpx.Response:
        return self.client.post(
            self.path("decisions"), content=json.dumps(content), headers={"Origin": "http://127.0.0.1:8000"} | headers
        )


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    unknown, access, ended = unknown_set(), Access(), []
    with LabelBook(tmp_path, images=48, known=unknown.known) as book:
        app = make_app(unknown, clusters(unknown), book, access, title="cycle 1", finished=lambda: ended.append(True))
        yield Served(tmp_path, book, access, TestClient(app, base_url="http://127.0.0.1:8000"), ended)


def test_an_address_works_once(served: Served) -> None:
    address = served.access.address(8000)
    entered = served.client.get(address)
    cookie = entered.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert f"Path={served.path()};" in cookie
    assert served.client.get(served.path()).status_code == 200
    served.client.cookies.clear()
    refused = served.client.get(address)
    assert refused.status_code == 403
    assert "press Enter for a new one" in refused.text
    assert "set-cookie" not in refused.headers
    assert served.client.get(served.path()).status_code == 403


def test_who_is_in_leaves_a_new_address_to_others(served: Served) -> None:
    served.enter()
    address = served.access.address(8000)
    assert served.client.get(address).status_code == 200
    served.client.cookies.clear()
    assert served.client.get(address).status_code == 200
    assert served.client.get(served.path()).status_code == 200


@pytest.mark.parametrize("name", ["", "set", "labels", "images/0.png", "annotate.js", "annotate.css", "nothing"])
def test_without_a_cookie_nothing_is_shown(served: Served, name: str) -> None:
    assert served.client.get(served.path(name)).status_code == 403
    assert served.client.get(served.path(name), headers={"Cookie": "annotate=guess"}).status_code == 403


@pytest.mark.parametrize("host", ["evil.example", "localhost:8000", "127.0.0.1.evil.example", "127.0.0.1:8000@x", ""])
def test_another_host_name_is_refused(served: Served, host: str) -> None:
    served.enter()
    assert served.client.get(served.path("set"), headers={"Host": host}).status_code == 400


def test_a_forwarded_port_is_the_same_machine(served: Served) -> None:
    served.enter()
    host = {"Host": "127.0.0.1:9999"}
    assert served.client.get(served.path("set"), headers=host).status_code == 200
    content = decision("dismissed", 1).model_dump()
    assert served.post(content, **host).status_code == 403
    assert served.post(content, Origin="http://127.0.0.1:9999", **host).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1:8001", "null", "https://127.0.0.1:8000"])
def test_another_origin_decides_nothing(served: Served, origin: str) -> None:
    served.enter()
    assert served.post(decision("dismissed", 1).model_dump(), Origin=origin).status_code == 403
    assert served.book.revision == 0


def test_no_origin_decides_nothing(served: Served) -> None:
    served.enter()
    content = decision("dismissed", 1).model_dump_json()
    assert served.client.post(served.path("decisions"), content=content).status_code == 403
    assert served.book.revision == 0


@pytest.mark.parametrize(
    "name",
    [
        "../unknown.json",
        "%2e%2e/unknown.json",
        "images/../../unknown_set.py",
        "images/48.png",
        "images/-1.png",
        "images/0.png/..%2f..%2fcli.py",
        "images/%2e%2e%2flabels.jsonl",
        "labels.jsonl",
        "cli.py",
        "//etc/passwd",
    ],
)
def test_there_is_no_way_to_other_files(served: Served, name: str) -> None:
    served.enter()
    # Not `client.get`: it would tidy the path.
    url = httpx.URL("http://127.0.0.1:8000").copy_with(raw_path=served.path(name).encode())
    assert served.client.send(served.client.build_request("GET", url)).status_code == 404


def test_nothing_is_kept_by_the_browser_and_nothing_comes_from_elsewhere(served: Served) -> None:
    served.enter()
    for name in ("", "set", "labels", "images/0.png", "annotate.js", "annotate.css", "nothing"):
        headers = served.client.get(served.path(name)).headers
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["referrer-policy"] == "no-referrer"
    page = served.client.get(served.path()).text
    assert re.findall(r'(?:src|href)="([^"]*)"', page) == ["data:,", "annotate.css", "annotate.js"]


def test_every_image_is_its_pixels(served: Served) -> None:
    served.enter()
    for number, pixels in enumerate(unknown_set().images):
        answer = served.client.get(served.path(f"images/{number}.png"))
        assert answer.headers["content-type"] == "image/png"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), pixels)


def test_what_is_decided_is_on_disk_and_in_the_answer(served: Served) -> None:
    served.enter()
    groups = served.client.get(served.path("set")).json()["groups"]
    assert [tuple(group["images"]) for group in groups] == [cluster.images for cluster in clusters(unknown_set())]
    named = served.post(decision("named", 4, 7, name=" Sea  otter").model_dump()).json()
    dismissed = served.post(decision("dismissed", 5).model_dump()).json()
    assert (named["labels"][4], dismissed["labels"][4:8]) == ("Sea otter", ["Sea otter", "", None, "Sea otter"])
    assert read(served.folder).given == {4: "Sea otter", 7: "Sea otter", 5: None}
    assert served.client.get(served.path("labels")).json() == dismissed
    assert served.client.get(served.path("labels?since=2")).status_code == 204
    assert served.client.get(served.path("labels?since=1")).json() == dismissed
    assert not served.ended


def test_the_end_is_answered_and_then_told(served: Served) -> None:
    served.enter()
    assert served.post(decision("named", 4, name="otter").model_dump()).status_code == 200
    refused = served.post(decision("finished").model_dump())
    assert (refused.status_code, served.ended) == (409, [])
    assert "otter has one image" in refused.json()["error"]
    assert served.post(decision("undone").model_dump()).status_code == 200
    assert served.post(decision("finished").model_dump()).json()["finished"]
    assert served.ended == [True]


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ({"id": "0" * 16, "verdict": "named", "images": [1], "name": "\u202e"}, 422),
        ({"id": "0" * 16, "verdict": "dismissed", "images": [48]}, 409),
        ([], 422),
        ("x" * MAX_BODY_BYTES, 413),
    ],
)
def test_a_decision_that_is_none_is_refused_with_a_line(served: Served, content: object, status: int) -> None:
    served.enter()
    answer = served.post(content)
    assert answer.status_code == status
    assert answer.json()["error"]
    assert served.book.revision == 0


def test_a_full_disk_is_said(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    served.enter()
    monkeypatch.setattr(os, "fsync", full)
    answer = served.post(decision("dismissed", 1).model_dump())
    assert answer.status_code == 507
    assert "No space left" in answer.json()["error"]


def test_a_start_forgets_who_was_let_in(served: Served) -> None:
    served.enter()
    cookie = served.client.cookies["annotate"]
    assert served.access.admits(cookie)
    again = Access()
    assert again.place != served.access.place
    assert not again.admits(cookie)


def test_a_browser_knows_the_images_again(served: Served) -> None:
    """It keeps by them what it could not send, so other images must have another name."""

    def named(unknown: UnknownSet) -> object:
        app = make_app(unknown, clusters(unknown), served.book, served.access, finished=lambda: None)
        client = TestClient(app, base_url="http://127.0.0.1:8000", cookies=served.client.cookies)
        return client.get(served.path("set")).json()["id"]

    served.enter()
    unknown = unknown_set()
    other = unknown.images.copy()
    other[5, 0, 0, 0] ^= 1
    assert named(unknown) == named(unknown_set())
    assert named(unknown) != named(dataclasses.replace(unknown, images=other))


# ----------------------------------------------------------------------------------------------------------- command


def annotate(configuration: Path, *, browser: Path | None = None) -> subprocess.Popen[str]:
    options = ["--no-browser"] if browser is None else []
    opens = {} if browser is None else {"DISPLAY": ":0", "BROWSER": str(browser)}
    return subprocess.Popen(
        [sys.executable, "-m", "collective_node", "annotate", "--config", str(configuration), *options],
        env=os.environ | opens,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def node(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    root = SigningKey.generate().public_hex
    initialise(tmp_path / "node", role="collective", data=tmp_path / "data", party="collective", root=root)
    return tmp_path / "node"


def test_where_nothing_waits_one_line_says_so(node: Path) -> None:
    process = annotate(node / "config.toml")
    output, error = process.communicate(timeout=60)
    assert (process.returncode, output) == (1, "")
    assert error.count("\n") == 1
    assert error.startswith("error: nothing waits for names in")


def finish(client: httpx.Client, process: subprocess.Popen[str], address: str) -> int:
    base, origin = address.partition("enter")[0], {"Origin": str(httpx.URL(address).copy_with(raw_path=b"/"))[:-1]}
    for content in (decision("named", 1, 2, name="otter"), decision("finished")):
        client.post(f"{base}decisions", content=content.model_dump_json(), headers=origin).raise_for_status()
    return process.wait(timeout=60)


def interrupt(client: httpx.Client, process: subprocess.Popen[str], address: str) -> int:
    process.send_signal(signal.SIGINT)
    return process.wait(timeout=60)


@pytest.mark.parametrize(
    ("end", "code", "last"),
    [
        (finish, 0, "finished: 2 images of 1 new classes, 0 dismissed, 46 left undecided"),
        (interrupt, 130, "stopped; 0 of 48 images are labelled, and kept"),
    ],
)
def test_the_command_serves_until_it_is_finished_or_interrupted(
    node: Path, end: Callable[[httpx.Client, subprocess.Popen[str], str], int], code: int, last: str
) -> None:
    folder = cycle_folder(node / "state", 1)
    store(folder, unknown_set())
    process = annotate(node / "config.toml")
    assert process.stdout
    try:
        address = next(line.strip() for line in process.stdout if "http://" in line)
        with httpx.Client() as client:
            assert client.get(address).status_code == 200
            assert end(client, process, address) == code
        assert process.stdout.read().strip().splitlines()[-1] == last
        assert process.stderr
        # Who interrupts it is told so, and nothing else.
        assert process.stderr.read().count("\n") == (1 if code else 0)
    finally:
        process.kill()
        process.wait()
    assert read(folder).finished == (code == 0)
    assert waiting_folder(node / "state") == (None if code == 0 else folder)


@pytest.fixture
def page(node: Path) -> Iterator[str]:
    """The address of a page of the real command, in whose folder the node has written who may look."""
    folder = cycle_folder(node / "state", 1)
    store(folder, unknown_set())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    digest = hashlib.sha256(b"known").hexdigest()
    (folder / "access.json").write_text(json.dumps({"port": port, "place": "0" * 32, "cookies": [digest]}))
    (folder / "access.json").chmod(0o600)
    process = annotate(node / "config.toml")
    assert process.stdout
    try:
        address = next(line.strip() for line in process.stdout if "http://" in line)
        assert httpx.URL(address).port == usual_port(node / "state") != port
        yield address
    finally:
        process.kill()
        process.communicate()


def test_attack_the_node_writes_who_may_look(page: str) -> None:
    base, url = page.partition("enter")[0], httpx.URL(page)
    known = {"Cookie": "annotate=known"}
    assert httpx.get(f"{base}images/0.png", headers=known).status_code == 403
    planted = url.copy_with(raw_path=f"/{'0' * 32}/images/0.png".encode())
    assert httpx.get(planted, headers=known).status_code == 404
    with httpx.Client() as let_in:  # the control
        assert let_in.get(page).status_code == 200
        assert let_in.get(f"{base}images/0.png").status_code == 200


def test_attack_the_node_writes_what_the_browser_opens(node: Path, tmp_path: Path) -> None:
    """What the browser is given is no file of the node's, and closed to others; at the end it is gone."""
    folder = cycle_folder(node / "state", 1)
    store(folder, unknown_set())
    browser, given = tmp_path / "browser", tmp_path / "given"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {given}.new && mv {given}.new {given}\n')
    browser.chmod(0o700)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    process = annotate(node / "config.toml", browser=browser)
    assert process.stdout
    try:
        address = next(line.strip() for line in process.stdout if "http://" in line)
        deadline = time.monotonic() + 60
        while not given.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        opened = Path(given.read_text().removeprefix("file://"))
        assert address.partition("token=")[0] in opened.read_text()
        assert not opened.resolve().is_relative_to((node / "state").resolve())
        assert [stat.S_IMODE(path.stat().st_mode) for path in (opened.parent, opened)] == [0o700, 0o600]
        assert {path: path.read_bytes() for path in folder.iterdir()} == before | {folder / LABELS_FILE: b""}
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert not opened.parent.exists()


def test_temporary_files_in_the_node_s_state_are_refused(node: Path) -> None:
    store(cycle_folder(node / "state", 1), unknown_set())
    (node / "state" / "tmp").mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(node / "state" / "tmp"))
        process = annotate(node / "config.toml", browser=Path("/bin/true"))
    _, error = process.communicate(timeout=60)
    assert process.returncode == 2
    assert error.splitlines()[-1].startswith("error: the folder of temporary files is")
    assert list((node / "state" / "tmp").iterdir()) == []
