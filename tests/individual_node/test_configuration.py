"""The configuration of an individual's node: what its folder of images is for is known before anything is done."""

from pathlib import Path

import pytest

from individual_node.configuration import FILES, IndividualConfiguration
from individual_node.target_tasks import read
from protocol.commands.init_command import initialise
from protocol.errors import InputError
from protocol.node.configuration import load
from tests.protocol.parties import ROOT


def test_a_folder_of_own_pictures_is_none_for_the_relay_s_adapt(tmp_path: Path) -> None:
    (tmp_path / "data" / "ladybird").mkdir(parents=True)
    initialise(tmp_path / "node", role="individual", data=tmp_path / "data", party="individual-1", root=ROOT.public_hex)
    node = load(tmp_path / "node" / "config.toml", IndividualConfiguration, "individual")
    assert "individual-node adapt --data" in node.data_fault()
    for name in FILES:
        assert name in node.data_fault()
        with pytest.raises(InputError):
            read(tmp_path / "data")
        (tmp_path / "data" / name).touch()
    assert node.data_fault() == ""
