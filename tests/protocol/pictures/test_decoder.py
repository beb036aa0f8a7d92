"""Decoders: what one that was taken over can do, and what a reader does with one that ends, hangs or lies."""

import errno
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from protocol.confinement import landlock, seccomp
from protocol.errors import InputError, RunFailedError
from protocol.learngene.architecture import InputContract
from protocol.pictures.decoder_process import COMMAND
from protocol.pictures.formats import FORMATS
from protocol.pictures.reader import PictureReader
from protocol.pictures.wire import ANSWER, REQUEST, Code

HERE = Path(__file__).parent
CONTRACT = InputContract(height=8, width=12, channels=3)
confined_only = pytest.mark.skipif(
    not (landlock.abi() and seccomp.offered()), reason="this kernel does not confine a process"
)


def odd(how: str) -> tuple[str, ...]:
    return (sys.executable, "-I", str(HERE / "odd_decoder.py"), how)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Forty pictures whose red says their number."""
    files = [tmp_path / f"{number}.png" for number in range(40)]
    for number, file in enumerate(files):
        Image.new("RGB", (12, 8), (number, 0, 0)).save(file)
    return files


# What the process itself may do.


def attacks(folder: Path, how: str) -> dict[str, str]:
    folder.mkdir()
    (folder / "there").write_bytes(b"x")
    program = [sys.executable, "-I", str(HERE / "decoder_attacks.py"), how, str(folder)]
    done = subprocess.run(program, capture_output=True, timeout=60, check=True, env={})
    outcomes: dict[str, str] = json.loads(done.stdout)
    return outcomes


@confined_only
def test_attack_a_decoder_that_was_taken_over(tmp_path: Path) -> None:
    """Control: the same process before it confines itself."""
    control = attacks(tmp_path / "control", "unconfined")
    found = attacks(tmp_path / "confined", "confined")
    assert found.pop("confined") == "True"
    assert set(found) == set(control)
    # A terminal is not always there, and tracing may be forbidden to everybody.
    assert {name for name, outcome in control.items() if outcome != "done"} <= {"open the terminal", "trace itself"}
    assert set(found.values()) == {os.strerror(errno.EPERM)}
    assert (tmp_path / "confined" / "there").exists()


def test_a_decoder_loads_no_torch_and_no_numpy() -> None:
    code = "import sys, protocol.pictures.decoder; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_a_decoder_has_nothing_of_its_user_s_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "PIL.py").write_text("raise SystemExit('planted')")
    for name in ("PYTHONPATH", "HOME", "PYTHONHOME", "PYTHONSTARTUP", "LD_LIBRARY_PATH"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (12, 8)).save(tmp_path / "picture.png")
    with PictureReader(1) as reader:
        assert reader.read(tmp_path / "picture.png", CONTRACT).shape == (8, 12, 3)
        (decoder,) = reader._decoders
        assert Path(f"/proc/{decoder.pid}/environ").read_bytes() == b""
        assert os.readlink(f"/proc/{decoder.pid}/cwd") == "/"
        opened = {int(name) for name in os.listdir(f"/proc/{decoder.pid}/fd")}
    assert opened == {0, 1, 2}


def test_a_decoder_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen({list(COMMAND)!r}, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.read(1)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    # A second process holds the decoder's input open: only the parent's end is left to tell it.
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        holder = os.open(f"/proc/{child}/fd/0", os.O_RDWR)
        try:
            parent.kill()
            parent.wait()
            ended_by = time.monotonic() + 20
            while _runs(child) and time.monotonic() < ended_by:
                time.sleep(0.02)
            assert not _runs(child)
        finally:
            os.close(holder)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("number", range(len(FORMATS)))
def test_a_decoder_answers_by_hand_and_ends_with_its_input(number: int, tmp_path: Path) -> None:
    if FORMATS[number] not in Image.registered_extensions().values():
        pytest.skip(f"this Pillow has no {FORMATS[number]}")
    Image.new("RGB", (12, 8), "red").save(tmp_path / "picture", FORMATS[number])
    data = (tmp_path / "picture").read_bytes()
    request = REQUEST.pack(number, 3, 0, 8, 12, len(data)) + data
    wrong = REQUEST.pack((number + 1) % len(FORMATS), 3, 0, 8, 12, len(data)) + data
    done = subprocess.run(COMMAND, input=request + wrong + request, capture_output=True, check=True, timeout=60)
    assert done.stderr == b""
    answers, codes = done.stdout, []
    while answers:
        code, length = ANSWER.unpack_from(answers)
        codes.append((code, length))
        answers = answers[ANSWER.size + length :]
    assert codes[1:] == [(Code.PIXELS, 288), (Code.DAMAGED, 0), (Code.PIXELS, 288)]


# What a reader makes of a decoder.


def test_decoders_that_are_killed_lose_no_picture(files: list[Path]) -> None:
    with PictureReader(2) as reader:
        numbers = []
        for found in reader.read_all(files, CONTRACT):
            numbers.append(int(found[0, 0, 0]))
            # All at once: a picture whose decoder died goes to one that was started later.
            if len(numbers) == 10:
                for decoder in reader._decoders:
                    if decoder.confined is not None:  # one that had not started would be another matter
                        os.kill(decoder.pid, signal.SIGKILL)
    assert numbers == list(range(40))


def test_a_decoder_that_dies_after_many_pictures_is_replaced(files: list[Path]) -> None:
    with PictureReader(1, command=odd("dies later")) as reader:
        assert len(list(reader.read_all(files, CONTRACT))) == len(files)


@pytest.mark.parametrize(
    "how",
    [
        "dies",
        "answers garbage",
        "an unknown code",
        "starts again",
        "too much",
        "too little",
        "four gigabytes",
        "a refusal with pixels",
    ],
)
def test_attack_a_decoder_that_lies_or_dies(files: list[Path], how: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with PictureReader(1, command=odd(how)) as reader:
        for file in files[:2]:
            with pytest.raises(InputError) as caught:
                reader.read(file, CONTRACT)
            assert str(caught.value).startswith(f"{file} cannot be read as a picture: the program that decodes it")
        assert not reader._decoders
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + (256 << 10)


def test_attack_answers_that_nobody_asked_for(files: list[Path]) -> None:
    """They count for the next pictures as far as they have their shape, and the reader goes on."""
    with PictureReader(1, command=odd("answers twice")) as reader:
        found = list(reader.read_all(files, CONTRACT))
        assert [picture.shape for picture in found] == [(8, 12, 3)] * len(files)
    nonsense = pytest.raises(InputError, match=r"/0\.png .* the program that decodes it ended, or answered nonsense")
    with PictureReader(1, command=odd("answers unasked")) as reader, nonsense:
        reader.read(files[0], CONTRACT)


@pytest.mark.parametrize("how", ["never answers", "stops in the middle"])
def test_attack_a_decoder_that_goes_silent(files: list[Path], how: str) -> None:
    with PictureReader(1, command=odd(how), seconds=1.0) as reader:
        began = time.monotonic()
        with pytest.raises(InputError, match=r"/0\.png cannot be read as a picture: that takes too long"):
            reader.read(files[0], CONTRACT)
        assert time.monotonic() - began < 30


def test_a_decoder_that_is_stopped_is_given_up(files: list[Path]) -> None:
    with PictureReader(1, seconds=1.0) as reader:
        reader.read(files[0], CONTRACT)
        os.kill(reader._decoders[0].pid, signal.SIGSTOP)
        with pytest.raises(InputError, match=r"/1\.png cannot be read"):
            reader.read(files[1], CONTRACT)
        np.testing.assert_array_equal(reader.read(files[2], CONTRACT)[0, 0], (2, 0, 0))


@pytest.mark.parametrize(
    ("how", "said"),
    [("does not start", "ImportError: there is no Pillow"), ("never starts", "does not start"),
     ("starts with pixels", "does not start")],
)  # fmt: skip
def test_a_decoder_that_does_not_start_is_no_fault_of_a_picture(files: list[Path], how: str, said: str) -> None:
    with PictureReader(1, command=odd(how), seconds=2.0) as reader:
        with pytest.raises(RunFailedError, match=said) as caught:
            reader.read(files[0], CONTRACT)
        assert "\n" not in str(caught.value)


def test_a_decoder_that_is_not_confined_is_said_to_be_so(files: list[Path]) -> None:
    with PictureReader(1, command=odd("unconfined")) as reader:
        assert (reader.read(files[0], CONTRACT) == 7).all()
        assert reader.confined is False


def test_no_decoder_is_left_behind(files: list[Path]) -> None:
    with PictureReader(2) as reader:
        pictures = reader.read_all(files, CONTRACT)
        next(pictures)
        started = [decoder.pid for decoder in reader._decoders]
    assert started
    assert not any(_runs(pid) for pid in started)


def test_a_kernel_that_confines_nothing_leaves_the_limits_and_the_list_of_formats(
    files: list[Path], tmp_path: Path
) -> None:
    """As on a kernel without Landlock and seccomp."""
    (tmp_path / "program.py").write_text(
        "from protocol.confinement import landlock, seccomp\n"
        "landlock.abi, seccomp.offered = lambda: 0, lambda: False\n"
        "from protocol.pictures import decoder\n"
        "decoder.main()\n"
    )
    (tmp_path / "eps.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with PictureReader(1, command=(sys.executable, "-I", str(tmp_path / "program.py"))) as reader:
        assert reader.read(files[3], CONTRACT)[0, 0, 0] == 3
        assert reader.confined is False
        with pytest.raises(InputError, match="PostScript"):
            reader.read(tmp_path / "eps.png", CONTRACT)
        limits = Path(f"/proc/{reader._decoders[0].pid}/limits").read_text().splitlines()
    values = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert values["Max file size"] == values["Max core file size"] == ["0", "0"]
    assert values["Max open files"] == ["3", "3"]
    assert "unlimited" not in values["Max address space"]
    assert "unlimited" not in values["Max cpu time"]
