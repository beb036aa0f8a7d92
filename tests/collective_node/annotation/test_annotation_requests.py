"""Requests as no browser sends them, to the page as it is served: what is said twice is refused and changes nothing."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from collective_node.annotation.access import Access
from collective_node.annotation.annotation_session import make_server
from collective_node.annotation.clusters import clusters
from collective_node.annotation.labels import Decision, LabelBook
from collective_node.annotation.server import COOKIE, make_app
from tests.collective_node.made_unknown_set import unknown_set

OWN = "http://127.0.0.1:8000"
BODY = Decision(id="decision-1", verdict="dismissed", images=(1,)).model_dump_json()


class Page:
    """A page that is served, and one who is let in."""

    def __init__(self, book: LabelBook, port: int) -> None:
        self.access, self.book, self._port = Access(), book, port
        self.cookie = ""

    def enter(self) -> None:
        token = self.access.address(8000).partition("token=")[2]
        self.cookie = f"{COOKIE}={self.access.exchange(token)}"

    @property
    def headers(self) -> list[str]:
        return ["Host: 127.0.0.1:8000", f"Cookie: {self.cookie}", f"Origin: {OWN}", f"Content-Length: {len(BODY)}"]

    def decide(self, *headers: str, query: str = "", body: str = BODY) -> int:
        """Send a decision with these headers, exactly; the status, 0 where nothing comes back."""
        return self.send(f"POST /{self.access.place}/decisions{query} HTTP/1.1", *headers, body=body)

    def send(self, line: str, *headers: str, body: str = "") -> int:
        text = "\r\n".join([line, *headers, "Connection: close", "", body])
        with socket.create_connection(("127.0.0.1", self._port), timeout=30) as connection:
            connection.sendall(text.encode())
            with contextlib.suppress(ConnectionResetError), connection.makefile("rb") as answer:
                return int([*answer.readline().split(), b"0", b"0"][1])
        return 0


@pytest.fixture
def page(tmp_path: Path) -> Iterator[Page]:
    unknown = unknown_set()
    with LabelBook(tmp_path, images=48, known=unknown.known) as book, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        made = Page(book, listener.getsockname()[1])
        server = make_server(
            make_app(unknown, clusters(unknown), book, made.access, title="cycle 1", finished=lambda: None)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        made.enter()
        yield made
        server.should_exit = True
        thread.join()


def test_a_decision_that_says_everything_once_is_stored(page: Page) -> None:
    """The control of all that follows."""
    assert page.decide(*page.headers) == 200
    assert page.book.revision == 1


SECOND = {
    "the same origin": f"Origin: {OWN}",
    "another origin": "Origin: http://evil.example",
    "an origin in capitals": f"ORIGIN: {OWN}",
    "another host": "Host: evil.example",
    "the same host": "Host: 127.0.0.1:8000",
    "a second cookie header": "Cookie: other=1",
    "a cookie that opens nothing": f"Cookie: {COOKIE}=guess",
    "another length": "Content-Length: 1",
    "chunks beside a length": "Transfer-Encoding: chunked",
    "chunks by another name": "Transfer-Encoding: identity",
    "two kinds of content": "Content-Type: text/plain\r\nContent-Type: application/json",
    "two authorizations": "Authorization: Basic eDp5\r\nAuthorization: Bearer x",
    "a header that goes on": "Origin: http://evil.example\r\n folded",
}


@pytest.mark.parametrize("name", SECOND)
@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_a_header_that_comes_twice_is_refused(page: Page, name: str, first: bool) -> None:
    own = page.headers
    sent = [SECOND[name], *own] if first else [*own, SECOND[name]]
    assert page.decide(*sent) in (400, 501)
    assert page.book.revision == 0


def test_two_cookies_of_our_name_are_refused(page: Page) -> None:
    own = page.headers
    for value in (f"{page.cookie}; other=1", f"other=1; {page.cookie}"):
        assert page.send(f"GET /{page.access.place}/set HTTP/1.1", own[0], f"Cookie: {value}") == 200
    for value in (f"{page.cookie}; {COOKIE}=guess", f"{COOKIE}=guess; {page.cookie}", f"{page.cookie}; {page.cookie}"):
        assert page.send(f"GET /{page.access.place}/set HTTP/1.1", own[0], f"Cookie: {value}") == 400


def test_a_parameter_that_comes_twice_is_refused_and_its_token_stays_unused(page: Page) -> None:
    token = page.access.address(8000).partition("token=")[2]
    enter = f"GET /{page.access.place}/enter?token="
    for query in (f"{token}&token=guess", f"guess&token={token}", f"{token}&token={token}", f"{token}&%74oken=x"):
        assert page.send(f"{enter}{query} HTTP/1.1", "Host: 127.0.0.1:8000") == 400
    assert page.send(f"{enter}{token} HTTP/1.1", "Host: 127.0.0.1:8000") == 200
    cookie = f"Cookie: {page.cookie}"
    labels = f"GET /{page.access.place}/labels?since=0"
    assert page.send(f"{labels} HTTP/1.1", "Host: 127.0.0.1:8000", cookie) == 204
    assert page.send(f"{labels}&since=1 HTTP/1.1", "Host: 127.0.0.1:8000", cookie) == 400


@pytest.mark.parametrize("header", ["Authorization: Bearer {}", "X-Token: {}", "Token: {}", "Cookie: token={}"])
def test_a_token_opens_nothing_where_it_does_not_belong(page: Page, header: str) -> None:
    token = page.access.address(8000).partition("token=")[2]
    assert page.send(f"GET /{page.access.place}/set HTTP/1.1", "Host: 127.0.0.1:8000", header.format(token)) == 403


def test_a_second_request_is_not_smuggled_behind_a_short_length(page: Page) -> None:
    own = page.headers[:3]
    inside = "\r\n".join([f"POST /{page.access.place}/decisions HTTP/1.1", *page.headers, "", BODY])
    chunked = f"0\r\n\r\n{inside}"
    assert page.decide(*own, "Transfer-Encoding: chunked", f"Content-Length: {len(chunked)}", body=chunked) == 400
    assert page.decide(*own, "Transfer-Encoding: chunked", body=chunked) in (400, 422)
    assert page.book.revision == 0
