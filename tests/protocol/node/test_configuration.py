"""The configuration file of a node: paths, defaults, and one clear line for everything wrong."""

from pathlib import Path

import pytest
import tomli_w
from pydantic import BaseModel, ValidationError

from protocol.errors import InputError
from protocol.keys.signing_key import SigningKey
from protocol.node.configuration import STRICT, NodeConfiguration, load, node_table, read

ROOT = SigningKey.from_seed(b"r" * 32).public_hex
NODE: dict[str, object] = {
    "role": "collective",
    "party": "collective-1",
    "data": "images",
    "state": "state",
    "socket": "node.sock",
    "secret": "../secret",
    "key": "/keys/signing.key",
    "trust": "~/trust.json",
    "root": ROOT,
    "run_id": "0123456789abcdef" * 2,
}


class Own(BaseModel):
    model_config = STRICT
    epochs: int = 3
    layers: int | None = 4
    strategy: str = "replay"


class OwnConfiguration(NodeConfiguration):
    own: Own = Own()


def write(folder: Path, content: dict[str, object]) -> Path:
    path = folder / "config.toml"
    path.write_text(tomli_w.dumps(content))
    return path


def test_paths_count_from_the_file_and_defaults_are_filled_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/ada")
    node = load(write(tmp_path, {"node": NODE}), NodeConfiguration, None).node
    assert node.data == tmp_path / "images"
    assert node.secret == tmp_path.parent / "secret"
    assert node.key == Path("/keys/signing.key")
    assert node.trust == Path("/home/ada/trust.json")
    assert (node.device, node.threads, node.seed, node.unconfined) == ("auto", 0, 0, False)
    with pytest.raises(ValidationError):
        node.seed = 4


def test_a_relative_path_to_the_file_is_fine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"node": NODE})
    monkeypatch.chdir(tmp_path)
    assert load(Path("config.toml"), NodeConfiguration, None).node.data == tmp_path / "images"


def test_a_party_has_tables_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path, {"node": NODE, "own": {"epochs": 5}})
    assert load(path, OwnConfiguration, None).own.epochs == 5
    with pytest.raises(InputError, match="own"):
        load(path, NodeConfiguration, None)


def test_none_is_a_word_where_a_setting_may_be_none_and_text_elsewhere(tmp_path: Path) -> None:
    own = load(
        write(tmp_path, {"node": NODE, "own": {"layers": "none", "strategy": "none"}}), OwnConfiguration, None
    ).own
    assert own.layers is None
    assert own.strategy == "none"
    assert load(write(tmp_path, {"node": NODE, "own": {}}), OwnConfiguration, None).own.layers == 4
    with pytest.raises(InputError, match=r"own\.epochs"):
        load(write(tmp_path, {"node": NODE, "own": {"epochs": "none"}}), OwnConfiguration, None)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"party": "Ada Lovelace"}, "node.party"),
        ({"party": ""}, "node.party"),
        ({"role": "relay"}, "node.role"),
        ({"role": "none"}, "node.role"),
        ({"role": "individual"}, "node.encryption_key"),
        ({"encryption_key": "encryption.key"}, "node.encryption_key"),
        ({"data": ""}, "node.data"),
        ({"data": 5}, "node.data"),
        ({"run_id": "0123"}, "node.run_id"),
        ({"run_id": "G" * 32}, "node.run_id"),
        ({"root": "ab" * 31}, "node.root"),
        ({"root": ROOT.upper()}, "node.root"),
        ({"root": "00" * 32}, "node.root"),
        ({"root": "none"}, "node.root"),
        ({"key_file": ""}, "node.key_file"),
        ({"encryption_key": 5}, "node.encryption_key"),
        ({"device": "tpu"}, "node.device"),
        ({"device": "mps"}, "node.device"),
        ({"threads": -1}, "node.threads"),
        ({"threads": "2"}, "node.threads"),
        ({"seed": 2.0}, "node.seed"),
        ({"unconfined": "yes"}, "node.unconfined"),
        ({"colour": "red"}, "node.colour"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(tmp_path: Path, change: dict[str, object], where: str) -> None:
    path = write(tmp_path, {"node": {**NODE, **change}})
    with pytest.raises(InputError) as error:
        load(path, NodeConfiguration, None)
    assert where in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_may_be_left_out_and_the_word_none_says_so(tmp_path: Path) -> None:
    given = {"encryption_key": "encryption.key", "key_file": "/media/stick/key.secret"}
    none = dict.fromkeys(given, "none")
    for role, change, expected in (
        ("individual", given, (tmp_path / "encryption.key", Path("/media/stick/key.secret"))),
        ("collective", none, (None, None)),
        ("collective", {}, (None, None)),
    ):
        path = write(tmp_path, {"node": {**NODE, "role": role, **change}, "own": {}})
        node = node_table(path, read(path), None)
        assert (node.encryption_key, node.key_file) == expected
        assert node == load(path, OwnConfiguration, None).node


@pytest.mark.parametrize("missing", ["party", "data", "state", "socket", "secret", "key", "trust", "root", "run_id"])
def test_what_has_no_default_must_be_given(tmp_path: Path, missing: str) -> None:
    content = {name: value for name, value in NODE.items() if name != missing}
    with pytest.raises(InputError, match=f"node.{missing}: field required"):
        load(write(tmp_path, {"node": content}), NodeConfiguration, None)


def test_no_file_no_toml_and_no_text(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "none.toml", NodeConfiguration, None)
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path, NodeConfiguration, None)
    (tmp_path / "bad.toml").write_text("[node")
    with pytest.raises(InputError, match="not a TOML file"):
        load(tmp_path / "bad.toml", NodeConfiguration, None)
    (tmp_path / "bad.toml").write_bytes(b"\xff\xff")
    with pytest.raises(InputError, match="not a TOML file"):
        load(tmp_path / "bad.toml", NodeConfiguration, None)
