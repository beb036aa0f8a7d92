"""The courier: it carries bytes, lets no exception through, and holds neither torch nor the other side's secrets."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from hypothesis import given

from protocol.errors import InputError, RefusedError
from protocol.files.private_folders import private_folder
from protocol.node.server import serve
from protocol.transport import courier
from protocol.transport.courier import from_record, to_record
from protocol.transport.frame import Frame, encode_header
from protocol.transport.local_socket import listen, make_secret
from protocol.transport.simulation_paths import simulation_paths
from tests.protocol.fake_program import SECRET_TEXT, FakeProgram
from tests.protocol.transport.test_local_socket import FRAMES


@pytest.fixture(autouse=True)
def _as_in_a_running_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower makes messages only inside an app's task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


UNREACHABLE = Frame("refused", fields={"code": "unreachable"})


def context(config: dict[str, str | int | float | bool], run: int = 1) -> Context:
    return Context(run_id=run, node_id=2, node_config=config, state=RecordDict(), run_config={})


def carry(record: RecordDict, place: Context) -> Frame:
    message = Message(record, dst_node_id=2, message_type=courier.MESSAGE_TYPE)
    return from_record(courier.app(message, place).content)


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Context]:
    path, secret = tmp_path / "run" / "node.sock", tmp_path / "secret"
    listener = listen(path)
    program = FakeProgram("individual", "individual-1")
    thread = threading.Thread(target=_serve, args=(listener, make_secret(secret), program), daemon=True)
    thread.start()
    yield context({"socket": str(path), "secret": str(secret)})
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(10)


def _serve(listener: socket.socket, secret: bytes, program: FakeProgram) -> None:
    try:
        serve(listener, secret, program, None)
    except OSError:
        return


@given(FRAMES)
def test_a_frame_survives_flower_s_record(frame: Frame) -> None:
    assert from_record(to_record(frame)) == frame


def test_a_command_reaches_the_node_and_its_answer_comes_back(site: Context) -> None:
    command = Frame("echo", {"n": 7}, {"w": "x"}, {"blob": os.urandom(1_000_000)})
    assert carry(to_record(command), site) == command


@pytest.mark.parametrize("word", ["crash", "input", "expired"])
def test_no_text_of_an_error_leaves_the_site(site: Context, word: str) -> None:
    message = Message(to_record(Frame(word)), dst_node_id=2, message_type=courier.MESSAGE_TYPE)
    reply = courier.app(message, site)
    assert not reply.has_error()
    assert SECRET_TEXT not in repr(reply.content)
    assert from_record(reply.content).name == "refused"


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"socket": "/nowhere/node.sock", "secret": "/nowhere/secret"},
        {"socket": 5, "secret": "/nowhere"},
        {"partition-id": "../../etc"},
        {"partition-id": 999},
    ],
)
def test_a_site_that_cannot_be_reached_is_said_to_be_so_and_nothing_more(config: dict[str, str | int]) -> None:
    assert carry(to_record(Frame("status")), context(dict(config))) == UNREACHABLE


def test_another_secret_is_unreachable(site: Context, tmp_path: Path) -> None:
    make_secret(tmp_path / "other")
    other = context({**site.node_config, "secret": str(tmp_path / "other")})
    assert carry(to_record(Frame("echo")), other) == UNREACHABLE
    assert carry(to_record(Frame("echo")), site) == Frame("echo")


HEADER = encode_header(Frame("echo", parts={"p": b"1234"}))


@pytest.mark.parametrize(
    "record",
    [
        RecordDict(),
        RecordDict({"frame": ConfigRecord({})}),
        RecordDict({"frame": ConfigRecord({"header": "text"})}),
        RecordDict({"frame": ConfigRecord({"header": b"{}"})}),
        RecordDict({"frame": ConfigRecord({"header": HEADER})}),
        RecordDict(
            {
                "frame": ConfigRecord({"header": HEADER}),
                "parts": ArrayRecord({"p": Array("uint8", (3,), "bytes", b"123")}),
            }
        ),
        RecordDict(
            {
                "frame": ConfigRecord({"header": HEADER}),
                "parts": ArrayRecord({"q": Array("uint8", (4,), "bytes", b"1234")}),
            }
        ),
    ],
)
def test_a_message_without_a_proper_frame_is_refused_and_reaches_nobody(site: Context, record: RecordDict) -> None:
    with pytest.raises(RefusedError):
        from_record(record)
    assert carry(record, site) == Frame("refused", fields={"code": "malformed"})


def test_in_a_simulation_both_sides_compute_the_same_door(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert courier.door(context({"partition-id": 3, "num-partitions": 4}, run=77)) == simulation_paths(77, 3)
    with pytest.raises(InputError):
        courier.door(context({"partition-id": True}))


def test_a_simulated_node_is_found_without_any_configuration() -> None:
    path, secret = simulation_paths(2**64 - 1, 1)
    private_folder(path.parent.parent)
    listener = listen(path)
    try:
        program = FakeProgram("individual", "individual-1")
        thread = threading.Thread(target=_serve, args=(listener, make_secret(secret), program), daemon=True)
        thread.start()
        assert carry(to_record(Frame("echo")), context({"partition-id": 1}, run=2**64 - 1)) == Frame("echo")
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(10)
    finally:
        listener.close()
        path.unlink()
        secret.unlink()
        path.parent.rmdir()


@pytest.mark.parametrize("module", ["protocol.transport.courier", "protocol.transport.relay"])
def test_courier_and_relay_load_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision', 'ray'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
