"""The courier: a Flower ClientApp that carries opaque bytes between the relay and its node's socket.

It holds no data, no key and no model, imports no torch, and lets no exception through: Flower would send its text to
the server.
"""

from collections.abc import Mapping
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol.errors import InputError, MalformedError, RefusedError
from protocol.transport.frame import Frame, decode_header, encode_header
from protocol.transport.local_socket import DisconnectedError, HandshakeError, ask, load_couriers_secret
from protocol.transport.simulation_paths import simulation_paths

#: Message type of every command.
MESSAGE_TYPE = "query.learngene"
#: Code of an answer if the command did not reach a node, or its answer did not come back.
UNREACHABLE = "unreachable"

_BYTES = "bytes"

app = ClientApp()


@app.query("learngene")
def carry(message: Message, context: Context) -> Message:
    """Bring one command to the node of this SuperNode, and bring back its answer."""
    try:
        answer = to_record(_ask_node(message.content, context))
    except (DisconnectedError, HandshakeError, InputError):
        answer = to_record(_refusal(UNREACHABLE))
    except RefusedError as error:
        answer = to_record(_refusal(error.code))
    except Exception:
        answer = to_record(_refusal("failed"))
    return Message(answer, reply_to=message)


def to_record(frame: Frame) -> RecordDict:
    """A frame as Flower carries it: the header as bytes, each part as an array of bytes (Flower cuts those up)."""
    record = RecordDict({"frame": ConfigRecord({"header": encode_header(frame)})})
    if frame.parts:
        arrays = {name: Array("uint8", (len(data),), _BYTES, data) for name, data in frame.parts.items()}
        record["parts"] = ArrayRecord(arrays)
    return record


def from_record(record: RecordDict) -> Frame:
    """The frame in a record.

    Raises:
        MalformedError: the record is not what :func:`to_record` makes. TooLargeError: it is over a frame's limits.
    """
    try:
        header = record.config_records["frame"]["header"]
        arrays: Mapping[str, Array] = record.array_records.get("parts") or {}
        parts = {name: array.data for name, array in arrays.items()}
    except (KeyError, AttributeError) as error:
        raise MalformedError("a Flower message without a frame") from error
    if not isinstance(header, bytes):
        raise MalformedError("a Flower message without a frame's header")
    frame, sizes = decode_header(header)
    if {name: len(data) for name, data in parts.items()} != sizes:
        raise MalformedError("the parts of a Flower message do not fit its header")
    return Frame(frame.name, frame.numbers, frame.fields, parts)


def door(context: Context) -> tuple[Path, Path]:
    """Socket and secret of this SuperNode's node: as ``--node-config`` says, or the simulation's.

    Raises:
        InputError: there is neither.
    """
    given, secret = context.node_config.get("socket"), context.node_config.get("secret")
    if isinstance(given, str) and isinstance(secret, str):
        return Path(given), Path(secret)
    partition = context.node_config.get("partition-id")
    if type(partition) is not int:
        raise InputError('start the SuperNode with --node-config \'socket="/path/node.sock" secret="/path/secret"\'')
    return simulation_paths(context.run_id, partition)


def _ask_node(record: RecordDict, context: Context) -> Frame:
    socket, secret = door(context)
    return ask(socket, load_couriers_secret(secret, socket), from_record(record))


def _refusal(code: str) -> Frame:
    return Frame("refused", fields={"code": code})
