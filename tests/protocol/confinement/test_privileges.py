"""Another user, or at least no capabilities: what a process that root started can still do, beside one that kept all.

As root only; with numbers that belong to nobody, so that no user of this machine is touched.
"""

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.confinement import privileges
from protocol.errors import InputError
from tests.protocol.made_node import make_node

NODE_USER, COURIER_USER, STRANGER, DOOR_GROUP = 64_601, 64_602, 64_603, 64_700

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that other users may enter, as pytest's own may not be."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def outcomes(folder: Path, code: str) -> dict[str, object]:
    """Run ``code`` in a process of its own; what it notes in ``outcomes``."""
    program = f"""
        import json, os, sys
        from pathlib import Path
        from protocol.confinement import privileges
        from protocol.node import reachable_files as rules
        folder, outcomes = Path({str(folder)!r}), {{}}
        def attempt(name, function):
            try:
                function()
                outcomes[name] = "done"
            except OSError as error:
                outcomes[name] = type(error).__name__
    """
    text = textwrap.dedent(program) + textwrap.dedent(code) + "\nprint(json.dumps(outcomes))\n"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


ATTEMPTS = """
    attempt("read another user's file", lambda: (folder / "theirs").read_bytes())
    attempt("read root's file", lambda: (folder / "roots").read_bytes())
    attempt("give a file away", lambda: os.chown(folder / "own", 64603, 64603))
    attempt("become root", lambda: os.setuid(0))
    attempt("become root for now", lambda: os.seteuid(0))
    attempt("join root's group", lambda: os.setgid(0))
    attempt("leave the groups", lambda: os.setgroups([]))
    attempt("signal the parent", lambda: os.kill(os.getppid(), 0))
"""


def prepare(folder: Path, owner: int) -> None:
    for name, user in (("theirs", STRANGER), ("roots", 0), ("own", owner)):
        (folder / name).write_text("x")
        (folder / name).chmod(0o600)
        os.chown(folder / name, user, user)


@as_root
def test_a_process_that_became_another_user_has_no_way_back(folder: Path) -> None:
    prepare(folder, NODE_USER)
    # The control: root may do all of it.
    assert set(outcomes(folder, ATTEMPTS).values()) == {"done"}
    become = f"""
    privileges.become(privileges.find_user("{NODE_USER}"))
    outcomes["ids"] = [os.getresuid(), os.getresgid(), os.getgroups(), privileges.has_capabilities()]
    """
    found = outcomes(folder, become + ATTEMPTS)
    assert found.pop("ids") == [[NODE_USER] * 3, [NODE_USER] * 3, [NODE_USER], False]
    assert set(found.values()) == {"PermissionError"}


@as_root
def test_root_without_capabilities_is_a_user_like_any_other(folder: Path) -> None:
    prepare(folder, 0)
    drop = """
    privileges.drop_capabilities()
    outcomes["capabilities"] = privileges.has_capabilities()
    """
    found = outcomes(folder, drop + ATTEMPTS)
    assert found.pop("capabilities") is False
    denied = {"read another user's file", "give a file away", "leave the groups"}
    assert {name for name, outcome in found.items() if outcome == "PermissionError"} == denied
    # And a program that it starts gains none, as root's programs otherwise do.
    start = """
        import subprocess
        from protocol.confinement import landlock
        from protocol.node import reachable_files as rules
        landlock.set_no_new_privileges()
        line = "from protocol.confinement import privileges; print(privileges.has_capabilities())"
        outcomes["child"] = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True).stdout.strip()
    """
    assert outcomes(folder, start)["child"] == "True"
    assert outcomes(folder, textwrap.dedent(drop) + textwrap.dedent(start))["child"] == "False"


@as_root
def test_acting_as_a_user_ends_with_root(folder: Path) -> None:
    os.chown(folder, NODE_USER, NODE_USER)
    user = privileges.find_user(str(NODE_USER))
    groups = os.getgroups()
    with privileges.acting_as(user):
        (folder / "made").write_text("x")
        assert os.geteuid() == NODE_USER
    assert (folder / "made").stat().st_uid == NODE_USER
    assert (os.getresuid(), os.getresgid(), os.getgroups()) == ((0, 0, 0), (0, 0, 0), groups)
    assert privileges.own_folder(folder / "state", user).stat().st_uid == NODE_USER
    (folder / "roots").mkdir(mode=0o700)
    with pytest.raises(InputError, match=rf"chown -R {NODE_USER} {folder}/roots"):
        privileges.own_folder(folder / "roots", user)
    assert os.geteuid() == 0


@pytest.mark.parametrize(
    ("name", "said"), [("root", "root cannot be"), ("0", "root cannot be"), ("no-such", "useradd")]
)
def test_who_cannot_be_the_user(name: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        privileges.find_user(name)


def test_only_root_can_become_somebody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(InputError, match="only root can go on as the user 64601"):
        privileges.chosen_user(str(NODE_USER))
    monkeypatch.setattr(os, "getresuid", lambda: (NODE_USER,) * 3)
    assert privileges.chosen_user(str(NODE_USER)) is None
    assert privileges.chosen_user(None) is None


# All that is imported later: the interpreter may lie where only root can read it.
NODE = """
    import sys
    from pathlib import Path
    import tests.protocol.fake_program
    from protocol.node import reachable_files as rules, confine, launcher
    from protocol.commands.terminal import exit_code
    rules.code_folders = lambda packages: []
    launcher.check_readable = lambda *given: None
    names = "protocol.node.configuration:NodeConfiguration", "tests.protocol.fake_program:make"
    config, unconfined = Path(sys.argv[1]), sys.argv[2:] == ["--unconfined"]
    sys.exit(exit_code(lambda: launcher.launch(config, None, *names, unconfined=unconfined)))
"""


@as_root
@pytest.mark.parametrize("unconfined", [False, True])
def test_a_node_and_its_courier_are_two_users(folder: Path, unconfined: bool) -> None:
    """Root's keys, the node's state, and a socket for one group: and each of them for nobody else."""
    from protocol.node import confine

    if not (unconfined or confine.offered()):
        pytest.skip("this kernel does not confine a process")
    node, door = two_users(folder)
    command = [sys.executable, "-c", textwrap.dedent(NODE), str(node / "config.toml")]
    options = ["--unconfined"] if unconfined else []
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (door / "node.sock").exists() or (door / "node.sock").stat().st_mode & 0o777 != 0o660:
                assert process.poll() is None, process.communicate()[1]
            said = {name: ask_as(user, groups, door) for name, user, groups in (
                ("courier", COURIER_USER, (DOOR_GROUP,)), ("stranger", STRANGER, ()),
            )}  # fmt: skip
            assert said == {"courier": "echo", "stranger": "PermissionError"}
            status = Path(f"/proc/{process.pid}/status").read_text()
        finally:
            process.terminate()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == set(fields["Gid"].split()) == {str(NODE_USER)}
    assert {fields[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    made = {path: path.stat() for path in (*(node / "state").rglob("*"), door, door / "socket.secret")}
    assert {status.st_uid for status in made.values()} == {NODE_USER}
    assert {oct(status.st_mode & 0o077) for path, status in made.items() if (node / "state") in path.parents} == {"0o0"}
    modes = {path.name: (made[path].st_mode & 0o777, made[path].st_gid) for path in (door, door / "socket.secret")}
    assert modes == {"door": (0o750, DOOR_GROUP), "socket.secret": (0o640, DOOR_GROUP)}


@as_root
def test_a_state_folder_of_somebody_else_is_one_line_that_says_what_to_type(folder: Path) -> None:
    node, _ = two_users(folder)
    os.chown(node / "state", 0, 0)
    command = [sys.executable, "-c", textwrap.dedent(NODE), str(node / "config.toml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"chown -R {NODE_USER} {node}/state" in done.stderr


def two_users(folder: Path) -> tuple[Path, Path]:
    """A node's folder and the folder of its socket, as an administrator would prepare them."""
    node, door, data = folder / "node", folder / "door", folder / "data"
    data.mkdir(mode=0o700)
    door.mkdir(mode=0o700)
    make_node(node, "individual", data)
    (node / "socket.secret").rename(door / "socket.secret")
    (node / "state").mkdir(mode=0o700)
    node.chmod(0o755)
    text = (node / "config.toml").read_text()
    for before, after in (
        ('socket = "node.sock"', f'socket = "{door}/node.sock"'),
        ('secret = "socket.secret"', f'secret = "{door}/socket.secret"'),
        ('socket_group = "none"', f'socket_group = "{DOOR_GROUP}"'),
        ('user = "none"', f'user = "{NODE_USER}"'),
        ('device = "auto"', 'device = "cpu"'),
    ):
        assert before in text
        text = text.replace(before, after)
    (node / "config.toml").write_text(text)
    for path in (data, door, door / "socket.secret", node / "state"):
        os.chown(path, NODE_USER, NODE_USER)
    return node, door


def ask_as(user: int, groups: tuple[int, ...], door: Path) -> str:
    """The word of the node's answer to another user's command, or the error's name."""
    code = f"""
        import os
        from pathlib import Path
        from protocol.confinement import privileges
        from protocol.node import reachable_files as rules
        from protocol.errors import LearngeneError
        from protocol.transport.local_socket import Frame, ask, load_couriers_secret
        door = Path({str(door)!r})
        import encodings.idna, encodings.ascii
        privileges.become(privileges.User("x", {user}, {user}, {groups!r}))
        try:
            secret = load_couriers_secret(door / "socket.secret", door / "node.sock")
            print(ask(door / "node.sock", secret, Frame("echo")).name)
        except LearngeneError as error:
            print(type(error.__cause__).__name__)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("hard", [0, None])
def test_no_core_file_is_made_also_where_only_root_could_raise_the_limit(folder: Path, hard: int | None) -> None:
    """A service may be started with a hard limit of 0: then it stays, and the start goes on."""
    found = outcomes(
        folder,
        f"""
        import resource
        if {hard} is not None:
            resource.setrlimit(resource.RLIMIT_CORE, ({hard}, {hard}))
        if os.geteuid() == 0:
            os.setuid({STRANGER})
        most = resource.getrlimit(resource.RLIMIT_CORE)[1]
        privileges.forbid_core_files()
        outcomes["limits"] = resource.getrlimit(resource.RLIMIT_CORE)
        outcomes["expected"] = [min(1, most) if most >= 0 else 1] * 2
        """,
    )
    assert found["limits"] == found["expected"]
