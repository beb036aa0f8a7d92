"""What a run takes over from the user's environment: a list that is frozen here, and nothing beside it."""

import os
import stat
from pathlib import Path

import pytest

from sims.run import environment
from sims.run.ray_environment import keep_ray_to_itself

#: Each of them would lead a run elsewhere, load another's code into it, or change what its logs hold.
HOSTILE = {
    "RAY_ADDRESS": "192.0.2.1:6379",
    "RAY_AUTH_MODE": "disabled",
    "RAY_AUTH_TOKEN": "known",
    "RAY_TMPDIR": "/var/tmp",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",
    "FLWR_HOME": "/var/tmp",
    "FLWR_OIDC_ENABLED": "1",
    "FLWR_INTERNAL_GRPC_CONTROL_API": "1",
    "FLWR_TRACING_ENABLED": "1",
    "FLWR_DATABASE": "/var/tmp/database",
    "http_proxy": "http://192.0.2.1:3128",
    "https_proxy": "http://192.0.2.1:3128",
    "all_proxy": "socks5://192.0.2.1:1080",
    "no_proxy": "",
    "HTTP_PROXY": "http://192.0.2.1:3128",
    "FORCE_COLOR": "1",
    "PYTHONPATH": "/var/tmp",
    "PYTHONSTARTUP": "/var/tmp/start.py",
    "PYTHONHOME": "/var/tmp",
    "PYTHONINSPECT": "1",
    "LD_PRELOAD": "/var/tmp/library.so",
    "LEARNGENE_RUN_REACH": "run",
    "LEARNGENE_RUN_TEMPORARY": "/var/tmp",
    "LEARNGENE_DATA": "/var/tmp",
    "TMPDIR": "/var/tmp",
    "UNHEARD_OF": "1",
}


def test_what_is_taken_over_is_written_down() -> None:
    assert sorted(environment.PASSED_ON) == [
        "ATEN_CPU_CAPABILITY",
        "CUBLAS_WORKSPACE_CONFIG",
        "CUDA_DEVICE_ORDER",
        "CUDA_VISIBLE_DEVICES",
        "DNNL_MAX_CPU_ISA",
        "HOME",
        "LANG",
        "LANGUAGE",
        "LD_LIBRARY_PATH",
        "LOGNAME",
        "MKL_NUM_THREADS",
        "MPLCONFIGDIR",
        "NO_COLOR",
        "NVIDIA_DRIVER_CAPABILITIES",
        "NVIDIA_VISIBLE_DEVICES",
        "OMP_NUM_THREADS",
        "ONEDNN_MAX_CPU_ISA",
        "OPENBLAS_CORETYPE",
        "OPENBLAS_L2_SIZE",
        "OPENBLAS_NUM_THREADS",
        "PATH",
        "PYTHONUTF8",
        "TERM",
        "TZ",
        "USER",
    ]


def test_nothing_else_gets_through(tmp_path: Path) -> None:
    kept = {name: f"own {name}" for name in (*environment.PASSED_ON, "LC_TIME")} | {"HOME": str(tmp_path)}
    found = environment.of_run(tmp_path / "flower", tmp_path / "temporary", {**HOSTILE, **kept})
    assert {name: found[name] for name in kept.keys() - {"PATH", "NO_COLOR"}} == {
        name: value for name, value in kept.items() if name not in ("PATH", "NO_COLOR")
    }
    assert found["PATH"].endswith(f"{os.pathsep}own PATH")
    assert not set(HOSTILE.items()) & set(found.items())
    # What is there and was not taken over is ours.
    assert found.keys() - kept.keys() == {
        "FLWR_DISABLE_UPDATE_CHECK",
        "FLWR_HOME",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL",
        "FLWR_TELEMETRY_ENABLED",
        "LEARNGENE_RUN_TEMPORARY",
        "PYTHONDONTWRITEBYTECODE",
        "TMPDIR",
    }


@pytest.mark.parametrize("given", [{}, {"HOME": ""}, {"HOME": "/dev/null"}, {"HOME": "/nowhere"}])
def test_a_user_without_any_variable_or_without_a_home_can_run(tmp_path: Path, given: dict[str, str]) -> None:
    found = environment.of_run(tmp_path / "flower", tmp_path / "temporary", given)
    assert os.defpath in found["PATH"]
    assert found["HOME"] == str(tmp_path / "temporary")


def test_what_is_no_text_is_not_taken_over(tmp_path: Path) -> None:
    home = tmp_path / os.fsdecode(b"caf\xe9")
    home.mkdir()
    given = {"HOME": str(home), "PATH": os.fsdecode(b"/opt/\xff"), "LANG": "C"}
    found = environment.of_run(tmp_path / "flower", tmp_path / "temporary", given)
    assert found["HOME"] == str(tmp_path / "temporary")
    assert found["LANG"] == "C"
    "".join(found.values()).encode()


@pytest.mark.parametrize("given", [False, True])
def test_ray_keeps_to_itself_whatever_the_user_had_set(tmp_path: Path, given: bool) -> None:
    tmp_path.chmod(0o700)
    own = dict(HOSTILE)
    if given:
        own[environment.TEMPORARY] = str(tmp_path)
    else:
        del own[environment.TEMPORARY]
    keep_ray_to_itself(own)
    assert not {item for item in HOSTILE.items() if item[0].startswith("RAY_")} & set(own.items())
    assert own["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert own["RAY_AUTH_MODE"] == "token"
    # Where shared memory is small, as in a container, Ray would else not start on a machine with much memory.
    assert own["RAY_OBJECT_STORE_ALLOW_SLOW_STORAGE"] == "1"
    folder, token = Path(own["RAY_TMPDIR"]), Path(own["RAY_AUTH_TOKEN_PATH"])
    assert (folder == tmp_path) == given
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(token.stat().st_mode) == 0o600
    before = token.read_text()
    assert len(before) >= 32
    keep_ray_to_itself(own)
    assert Path(own["RAY_AUTH_TOKEN_PATH"]).read_text() != before
