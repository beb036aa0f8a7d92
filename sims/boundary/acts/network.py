"""The network, and sockets of every kind."""

import contextlib
import os
import socket
import stat

from .act import DONE, Aims, StoppedError, act, step
from .expectation import Open, network, scopes, system_calls, users
from .seen import GRANTED, HEARD, family, gets

_SECONDS = 3.0
_SOCKET = network("socket")
_ONE_USER = Open(
    "Landlock does not look at the path of a Unix socket on this kernel, and a courier needs one; where each site has "
    "a user of its own, the folder's mode (0700) stops it"
)
# Names of errors of getaddrinfo(3), if nothing answers and no table can be read.
_NAMES = {getattr(socket, name): name for name in ("EAI_AGAIN", "EAI_FAIL", "EAI_NONAME", "EAI_SYSTEM")}


def some_socket() -> socket.socket:
    """A Unix socket, or a stand-in if this process may not make one: a node's own socket will do, because a filter
    refuses a call before the kernel looks at its arguments.
    """
    try:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    except PermissionError:
        for number in range(3, 64):
            with contextlib.suppress(OSError):
                if stat.S_ISSOCK(os.fstat(number).st_mode):
                    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, os.dup(number))
        raise


def _pair() -> tuple[socket.socket, socket.socket]:
    """Two connected sockets; stand-ins, as in :func:`some_socket`, if this process may not make them."""
    try:
        return socket.socketpair()
    except PermissionError:
        return some_socket(), some_socket()


def _connect(kind: int, family: int, address: tuple[str, int] | str, token: str) -> bytes:
    with step("socket"):
        one = socket.socket(family, kind)
    with one:
        one.settimeout(_SECONDS)
        with step("connect"):
            one.connect(address)
        one.sendall(token.encode())
    return DONE


def _send(family: int, address: tuple[str, int] | str, token: str) -> bytes:
    with step("socket"):
        one = socket.socket(family, socket.SOCK_DGRAM)
    with one, step("sendto"):
        one.sendto(token.encode(), address)
    return DONE


def _listen(family: int, address: tuple[str, int] | str) -> bytes:
    with step("socket"):
        one = socket.socket(family, socket.SOCK_STREAM)
    with one:
        with step("bind"):
            one.bind(address)
        with step("listen"):
            one.listen()
    return DONE


def _open(family: int, kind: int, protocol: int = 0) -> bytes:
    with step("socket"):
        socket.socket(family, kind, protocol).close()
    return DONE


@act("connect by TCP", "to 127.0.0.1", HEARD, _SOCKET)
def connect_tcp(aims: Aims) -> bytes:
    return _connect(socket.SOCK_STREAM, socket.AF_INET, ("127.0.0.1", int(aims["tcp"])), aims["token"])


@act(
    "connect by TCP over IPv6",
    "to ::1",
    HEARD,
    _SOCKET,
    lacks=lambda stage: "" if "tcp6" in stage.listeners.addresses else "this machine has no IPv6",
)
def connect_tcp6(aims: Aims) -> bytes:
    return _connect(socket.SOCK_STREAM, socket.AF_INET6, ("::1", int(aims["tcp6"])), aims["token"])


@act("send by UDP", "sendto, which needs no connection", HEARD, _SOCKET)
def send_udp(aims: Aims) -> bytes:
    return _send(socket.AF_INET, ("127.0.0.1", int(aims["udp"])), aims["token"])


@act(
    "find a host by its name",
    "getaddrinfo of localhost",
    gets(lambda stage: b"127.0.0.1"),
    # Neither a socket nor a table of names can be had; which of the two says so is the C library's matter.
    network("getaddrinfo", *_NAMES.values()),
)
def find_name(aims: Aims) -> bytes:
    try:
        return str(socket.getaddrinfo("localhost", 80)).encode()
    except socket.gaierror as error:
        raise StoppedError("getaddrinfo", _NAMES.get(error.errno or 0, str(error.errno))) from None


@act("listen by TCP", "a door of its own", GRANTED, _SOCKET)
def listen_tcp(aims: Aims) -> bytes:
    return _listen(socket.AF_INET, ("127.0.0.1", 0))


@act(
    "speak to the other node",
    "its socket",
    gets(lambda stage: b"learngene socket"),
    _SOCKET,
    None,
    users("connect"),
)
def connect_other_node(aims: Aims) -> bytes:
    with step("socket"):
        one = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with one:
        one.settimeout(_SECONDS)
        with step("connect"):
            one.connect(aims["socket"])
        return one.recv(64)


@act("connect by a Unix path", "to a listener", HEARD, _SOCKET, _ONE_USER, users("connect"))
def connect_unix_path(aims: Aims) -> bytes:
    return _connect(socket.SOCK_STREAM, socket.AF_UNIX, aims["unix_stream"], aims["token"])


@act("send to a Unix path", "sendto, which needs no connection", HEARD, _SOCKET, _ONE_USER, users("sendto"))
def send_unix_path(aims: Aims) -> bytes:
    return _send(socket.AF_UNIX, aims["unix_datagram"], aims["token"])


@act("send with one of a pair", "sendto on a datagram socketpair", HEARD, network("socketpair"))
def send_unix_pair(aims: Aims) -> bytes:
    """By one of a pair of datagram sockets, which need no connection to send elsewhere."""
    with step("socketpair"):
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with one, other, step("sendto"):
        one.sendto(aims["token"].encode(), aims["unix_datagram"])
    return DONE


@act("connect to an abstract socket", "no path, so no file's mode", HEARD, _SOCKET, scopes("connect"))
def connect_abstract(aims: Aims) -> bytes:
    return _connect(socket.SOCK_STREAM, socket.AF_UNIX, "\0" + aims["abstract_stream"], aims["token"])


@act("send to an abstract socket", "sendto", HEARD, _SOCKET, scopes("sendto"))
def send_abstract(aims: Aims) -> bytes:
    return _send(socket.AF_UNIX, "\0" + aims["abstract_datagram"], aims["token"])


@act("listen on an abstract socket", "a door that no folder's mode guards", GRANTED, _SOCKET)
def listen_abstract(aims: Aims) -> bytes:
    return _listen(socket.AF_UNIX, "\0" + aims["token"])


@act("open a second door", "a Unix socket in its state", GRANTED, _SOCKET)
def listen_in_own_folder(aims: Aims) -> bytes:
    path = f"{aims['own']}/door"
    try:
        return _listen(socket.AF_UNIX, path)
    finally:
        if os.path.lexists(path):
            os.unlink(path)


@act("connect by its own door", "connect on the socket that it was given", GRANTED, system_calls("connect"))
def connect_own_socket(aims: Aims) -> bytes:
    """Connect a socket of its own, if it may make one."""
    with some_socket() as one:
        one.settimeout(_SECONDS)
        with step("connect"):
            one.connect(aims["unix_stream"])
    return DONE


@act("bind its own door anew", "bind on the socket that it was given", GRANTED, system_calls("bind"))
def bind_own_socket(aims: Aims) -> bytes:
    with some_socket() as one, step("bind"):
        one.bind("\0" + aims["token"])
    return DONE


@act("take a socket that its courier opened", "recvmsg with SCM_RIGHTS", GRANTED, system_calls("recvmsg"))
def receive_descriptor(aims: Aims) -> bytes:
    """Take an open file from a message, as a courier could send a socket that is connected."""
    one, other = _pair()
    with one, other:
        sent = 0
        # Who stands outside can send one all the same: what counts is whether such a message can be taken.
        with contextlib.suppress(PermissionError):
            socket.send_fds(other, [b"x"], [other.fileno()])
            sent = 1
        with step("recvmsg"):
            descriptors = socket.recv_fds(one, 1, 1)[1]
        for descriptor in descriptors:
            os.close(descriptor)
    if len(descriptors) != sent:
        raise RuntimeError("the descriptor was lost")
    return DONE


@act("hand an open file to its courier", "sendmsg with SCM_RIGHTS", GRANTED, system_calls("sendmsg"))
def send_descriptor(aims: Aims) -> bytes:
    one, other = _pair()
    with one, other, step("sendmsg"):
        socket.send_fds(one, [b"x"], [one.fileno()])
    return DONE


@act("ask the kernel about the network", "a netlink socket", GRANTED, _SOCKET)
def open_netlink(aims: Aims) -> bytes:
    return _open(16, socket.SOCK_RAW)


@act("send raw packets", "a raw socket", GRANTED, _SOCKET, lacks=family(socket.AF_INET, socket.SOCK_RAW, 1))
def open_raw(aims: Aims) -> bytes:
    return _open(socket.AF_INET, socket.SOCK_RAW, 1)


@act("listen to the wire", "a packet socket", GRANTED, _SOCKET, lacks=family(17, socket.SOCK_DGRAM))
def open_packet(aims: Aims) -> bytes:
    return _open(17, socket.SOCK_DGRAM)


@act("reach the hypervisor", "a vsock socket", GRANTED, _SOCKET, lacks=family(40, socket.SOCK_STREAM))
def open_vsock(aims: Aims) -> bytes:
    return _open(40, socket.SOCK_STREAM)


@act("use the kernel's ciphers", "an AF_ALG socket", GRANTED, _SOCKET, lacks=family(38, socket.SOCK_SEQPACKET))
def open_kernel_cipher(aims: Aims) -> bytes:
    return _open(38, socket.SOCK_SEQPACKET)
