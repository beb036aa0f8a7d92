"""The framed protocol of a node's socket: frames, limits, handshake, files."""

import os
import socket
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import InputError, LearngeneError, MalformedError, RunFailedError, TooLargeError
from protocol.transport import local_socket as door
from protocol.transport.frame import (
    MAX_ENTRIES,
    MAX_HEADER_BYTES,
    MAX_PARTS_BYTES,
    MAX_WORD_CHARACTERS,
    Frame,
    decode_header,
    encode_header,
)
from protocol.transport.local_socket import DisconnectedError, HandshakeError
from protocol.transport.simulation_paths import simulation_paths

NAMES = st.from_regex(r"[a-z][a-z0-9_-]{0,63}", fullmatch=True)
FRAMES = st.builds(
    Frame,
    NAMES,
    st.dictionaries(NAMES, st.integers(-(2**63), 2**63 - 1), max_size=5),
    st.dictionaries(NAMES, st.text(st.characters(max_codepoint=127), max_size=100), max_size=5),
    st.dictionaries(NAMES, st.binary(max_size=5000), max_size=5),
)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    left, right = socket.socketpair()
    yield left, right
    left.close()
    right.close()


@given(FRAMES)
def test_a_frame_arrives_as_it_was_sent(frame: Frame) -> None:
    left, right = socket.socketpair()
    with left, right:
        sender = threading.Thread(target=door.send_frame, args=(left, frame))
        sender.start()
        assert door.receive_frame(right, seconds=5) == frame
        sender.join()


def test_a_large_part_arrives(pair: tuple[socket.socket, socket.socket]) -> None:
    blob = os.urandom(5_000_000)
    sender = threading.Thread(target=door.send_frame, args=(pair[0], Frame("blob", parts={"blob": blob, "a": b""})))
    sender.start()
    assert door.receive_frame(pair[1], seconds=10).parts == {"a": b"", "blob": blob}
    sender.join()


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"null",
        b'{"numbers":{},"parts":{},"word":"a"}',
        b'{"extra":1,"numbers":{},"parts":{},"word":"a","words":{}}',
        b'{"numbers": {},"parts":{},"word":"a","words":{}}',
        b'{"word":"a","numbers":{},"parts":{},"words":{}}',
        b'{"numbers":{},"numbers":{},"parts":{},"word":"a","words":{}}',
        b'{"numbers":{"n":1,"n":1},"parts":{},"word":"a","words":{}}',
        b'{"numbers":{"n":1.0},"parts":{},"word":"a","words":{}}',
        b'{"numbers":{"n":true},"parts":{},"word":"a","words":{}}',
        b'{"numbers":{"n":9223372036854775808},"parts":{},"word":"a","words":{}}',
        b'{"numbers":{"n":NaN},"parts":{},"word":"a","words":{}}',
        b'{"numbers":{},"parts":{"p":-1},"word":"a","words":{}}',
        b'{"numbers":{},"parts":{"../p":1},"word":"a","words":{}}',
        b'{"numbers":{},"parts":[],"word":"a","words":{}}',
        b'{"numbers":{},"parts":{},"word":"A","words":{}}',
        b'{"numbers":{},"parts":{},"word":1,"words":{}}',
        b'{"numbers":{},"parts":{},"word":"a","words":{"w":1}}',
        '{"numbers":{},"parts":{},"word":"a","words":{"w":"é"}}'.encode(),
        b'{"numbers":{},"parts":{},"word":"a","words":{"w":"\\u00e9"}}',
        b"[" * 60_000,
    ],
)
def test_what_is_not_a_canonical_header_is_malformed(header: bytes) -> None:
    with pytest.raises(MalformedError):
        decode_header(header)


@pytest.mark.parametrize(
    "parts", [{"a": MAX_PARTS_BYTES + 1}, {"a": MAX_PARTS_BYTES, "b": 1}, {"a": 2**62, "b": 2**62}]
)
def test_more_bytes_than_allowed_are_refused_from_the_header_alone(parts: dict[str, int]) -> None:
    sizes = ",".join(f'"{name}":{size}' for name, size in parts.items())
    with pytest.raises(TooLargeError):
        decode_header(f'{{"numbers":{{}},"parts":{{{sizes}}},"word":"a","words":{{}}}}'.encode())


def test_a_header_over_the_limit_is_refused_before_it_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(struct.pack(">I", MAX_HEADER_BYTES + 1))
    with pytest.raises(TooLargeError):
        door.receive_frame(pair[1], seconds=5)


def test_what_cannot_be_received_cannot_be_sent() -> None:
    for frame in (
        Frame("Upper"),
        Frame("a", fields={"w": "é"}),
        Frame("a", fields={"w": "x" * (MAX_WORD_CHARACTERS + 1)}),
        Frame("a", numbers={"n": 2**63}),
        Frame("a", fields={f"w{n}": "" for n in range(MAX_ENTRIES + 1)}),
    ):
        with pytest.raises(MalformedError):
            encode_header(frame)


def test_half_a_frame_and_silence_end_in_time(pair: tuple[socket.socket, socket.socket]) -> None:
    header = encode_header(Frame("a", parts={"p": b"1234"}))
    pair[0].sendall(struct.pack(">I", len(header)) + header + b"12")
    with pytest.raises(DisconnectedError):
        door.receive_frame(pair[1], seconds=0.1)
    with pytest.raises(DisconnectedError):
        door.receive_frame(pair[1], seconds=0.1)


def test_a_closed_connection_in_the_middle_is_noticed(pair: tuple[socket.socket, socket.socket]) -> None:
    pair[0].sendall(b"\x00\x00")
    pair[0].close()
    with pytest.raises(DisconnectedError):
        door.receive_frame(pair[1], seconds=5)


def _both(left: Callable[[], None], right: Callable[[], None]) -> list[type[BaseException] | None]:
    results: list[type[BaseException] | None] = [None, None]

    def run(index: int, work: Callable[[], None]) -> None:
        try:
            work()
        except LearngeneError as error:
            results[index] = type(error)

    threads = [threading.Thread(target=run, args=(n, work)) for n, work in enumerate((left, right))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_two_sides_with_one_secret_shake_hands(pair: tuple[socket.socket, socket.socket]) -> None:
    secret = bytes(32)
    assert _both(lambda: door.answer_handshake(pair[0], secret), lambda: door.open_handshake(pair[1], secret)) == [
        None,
        None,
    ]


def test_a_courier_without_the_secret_is_not_heard(pair: tuple[socket.socket, socket.socket]) -> None:
    def node() -> None:
        try:
            door.answer_handshake(pair[0], bytes(32))
        finally:
            pair[0].close()

    assert _both(node, lambda: door.open_handshake(pair[1], b"x" * 32)) == [HandshakeError, DisconnectedError]


def test_an_impostor_in_the_place_of_the_node_is_not_believed(pair: tuple[socket.socket, socket.socket]) -> None:
    def impostor() -> None:
        pair[0].sendall(b"learngene socket 1\n" + bytes(32))
        answer = pair[0].recv(64, socket.MSG_WAITALL)
        # The courier's own proof sent back is no proof of the node.
        pair[0].sendall(answer[32:])

    assert _both(impostor, lambda: door.open_handshake(pair[1], b"x" * 32))[1] is HandshakeError


def test_an_old_proof_sent_again_is_refused() -> None:
    secret = bytes(32)
    left, right = socket.socketpair()
    with left, right:
        recorded: list[bytes] = []

        def eavesdrop() -> None:
            greeting = right.recv(51, socket.MSG_WAITALL)
            near, far = socket.socketpair()
            with near, far:
                near.sendall(greeting)
                helper = threading.Thread(target=lambda: _both(lambda: door.open_handshake(far, secret), lambda: None))
                helper.start()
                recorded.append(near.recv(64, socket.MSG_WAITALL))
                right.sendall(recorded[0])
                near.sendall(right.recv(32, socket.MSG_WAITALL))
                helper.join()

        assert _both(lambda: door.answer_handshake(left, secret), eavesdrop) == [None, None]
    left, right = socket.socketpair()
    with left, right:
        right.sendall(recorded[0])
        with pytest.raises(HandshakeError):
            door.answer_handshake(left, secret)


def test_a_socket_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "run" / "node.sock"
    door.listen(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_folder_open_to_others_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o750)
    with pytest.raises(InputError, match="chmod 700"):
        door.listen(tmp_path / "node.sock")


def test_a_linked_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(InputError, match="not a link"):
        door.listen(tmp_path / "link" / "node.sock")


def test_a_path_too_long_for_the_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="107"):
        door.listen(tmp_path / ("x" * 107))


def test_a_dead_socket_is_replaced_and_a_living_one_is_not(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "node.sock"
    door.listen(path).close()
    living = door.listen(path)
    with pytest.raises(RunFailedError, match="another node process"):
        door.listen(path)
    living.close()


def test_another_file_in_the_socket_s_place_is_kept(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "node.sock"
    path.write_text("precious")
    with pytest.raises(InputError, match="not a socket"):
        door.listen(path)
    assert path.read_text() == "precious"


def test_a_secret_is_private_and_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    secret = door.make_secret(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert door.load_secret(path) == secret
    path.chmod(0o644)
    with pytest.raises(InputError, match="chmod 600"):
        door.load_secret(path)


@pytest.mark.parametrize("text", ["", "zz", "00" * 31, "é"])
def test_what_is_no_secret_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "secret"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(InputError):
        door.load_secret(path)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DisconnectedError):
        door.ask(tmp_path / "none.sock", bytes(32), Frame("status"))


def test_simulation_paths_fit_into_a_socket_s_address(monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", "/" + "very-long-folder/" * 8)
    path, secret = simulation_paths(2**64 - 1, 999_999)
    assert len(os.fsencode(path)) <= door.MAX_PATH_BYTES
    assert path.parent == secret.parent
