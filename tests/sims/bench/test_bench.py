"""`learngene bench bundle`: what is timed is the protocol's own work, on a learngene of the size that was asked for."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from protocol.commands.terminal import make_app, run_app
from protocol.digest import digest_of
from protocol.encoding import blob
from protocol.errors import RefusedError
from protocol.exchange.egress import egress
from protocol.exchange.verification import SealedLearngene, VerifiedLearngene
from protocol.keys.kem import Kem
from protocol.messages import envelope, payloads
from protocol.messages.payloads import Grant, Release
from protocol.trust.policy import Policy
from sims.bench import bench_command, bundle_command, bundle_timing, made_bundle, measurements
from sims.bench.audiences_timing import measure_audiences
from sims.bench.bundle_timing import Work
from sims.bench.made_bundle import Bundle
from sims.bench.measurements import BundleBenchmark
from sims.bench.memory import growth, measure_memory
from tests.sims.bench.nobody import nobody

LEARNGENE = made_bundle.random_learngene(made_bundle.architecture_of(50_000), np.random.default_rng(1))


@pytest.fixture(scope="module", params=get_args(Kem))
def bundle(request: pytest.FixtureRequest) -> Bundle:
    return made_bundle.make_bundle(LEARNGENE, request.param)


@pytest.mark.parametrize("size", [100_000, 1_000_000, 57_000_000, 256_000_000])
def test_the_learngene_has_the_size_that_was_asked_for(size: int) -> None:
    architecture = made_bundle.architecture_of(size)
    shapes = {name: shape for name, (_, shape) in architecture.tensors(fisher=True).items()}
    width = architecture.blocks[0].in_channels
    # One channel more or fewer of the last convolution: its weights with their Fisher diagonal, and its BatchNorm.
    assert abs(blob.encoded_size(shapes) - size) <= 4 * (2 * 9 * width + 6)


def test_what_is_timed_is_what_the_protocol_does(bundle: Bundle) -> None:
    work = Work(bundle, LEARNGENE)
    assert work.sign() == bundle.release
    ciphertext, sealed_key = work.seal()
    assert ciphertext == bundle.ciphertext
    grant = payloads.decode(Grant, envelope.parse(bundle.grant).payload)
    assert len(sealed_key) == len(grant.sealed_key)
    assert work.open() == bundle.plaintext == blob.encode(LEARNGENE.tensors)
    assert isinstance(work.verify_ciphertext(), SealedLearngene)
    for verified in (work.verify_and_parse(), work.verify_whole()):
        assert isinstance(verified, VerifiedLearngene)
        assert verified.release == payloads.decode(Release, envelope.parse(bundle.release).payload)
        for name, array in verified.learngene.tensors.items():
            np.testing.assert_array_equal(array, LEARNGENE.tensors[name], strict=True)


@pytest.mark.parametrize(
    ("part", "step"),
    [
        *itertools.product(("release", "grant", "ciphertext"), (Work.verify_ciphertext, Work.verify_whole)),
        *itertools.product(("release", "grant", "plaintext"), (Work.verify_and_parse,)),
    ],
)
def test_what_is_timed_refuses_what_was_changed(bundle: Bundle, part: str, step: Callable[[Work], object]) -> None:
    """A verification that skipped a step would be fast."""
    data = bytearray(getattr(bundle, part))
    data[len(data) // 2] ^= 1
    with pytest.raises(RefusedError):
        step(Work(bundle._replace(**{part: bytes(data)})))


def test_every_piece_follows_every_other_one_in_turn() -> None:
    done: list[str] = []
    ticks = itertools.count()
    pieces = {name: lambda name=name: done.append(name) for name in "abc"}
    seconds = bundle_timing.measure_pieces(pieces, 3, lambda: float(next(ticks)), nobody)
    assert "".join(done) == "abc" + "abc" + "bca" + "cab"
    assert seconds == {name: [1.0, 1.0, 1.0] for name in "abc"}


def test_ratios_are_of_the_same_repeat() -> None:
    """A machine that is three times as slow for a while changes no ratio."""
    sha256, verify = [1.0, 3.0, 2.0], [1.5, 4.5, 3.0]
    table = bundle_timing.timings(
        {measurements.SHA256: sha256, measurements.COPY: [0.5, 1.5, 1.0], measurements.VERIFY_AND_PARSE: verify},
        6_000_000,
    )
    timing = next(timing for timing in table if timing.name == measurements.VERIFY_AND_PARSE)
    assert timing.to_sha256 == measurements.Range(median=1.5, smallest=1.5, largest=1.5)
    assert timing.to_copy == measurements.Range(median=3.0, smallest=3.0, largest=3.0)
    assert timing.seconds == measurements.Range(median=3.0, smallest=1.5, largest=4.5)
    assert timing.megabytes_per_second == 2.0


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be set back here")
def test_growth_is_the_peak_and_not_what_is_left() -> None:
    size = 64 << 20

    def passing_copy() -> None:
        bytearray(size)

    # The kernel counts in batches of pages.
    assert 0.95 * size <= growth(passing_copy) < 1.2 * size
    assert growth(lambda: None) < 0.1 * size


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak cannot be set back here")
def test_the_parsed_tensors_are_no_second_copy(tmp_path: Path) -> None:
    architecture = made_bundle.architecture_of(8_000_000)
    learngene = made_bundle.random_learngene(architecture, np.random.default_rng(0))
    bundle = made_bundle.make_bundle(learngene, "x25519")
    memory = {row.name: row.bytes / len(bundle.plaintext) for row in measure_memory(bundle, tmp_path)}
    assert memory[measurements.COPY] >= 0.95  # a copy would be seen
    assert memory[measurements.VERIFY_AND_PARSE] < 0.25
    assert 0.95 <= memory[measurements.WHOLE] < 1.25  # the plaintext, once
    assert not list(tmp_path.iterdir())


def test_many_audiences_share_one_blob(tmp_path: Path, bundle: Bundle) -> None:
    told: list[tuple[int, int]] = []
    clock = itertools.count()
    measured = measure_audiences(
        bundle, 7, tmp_path, lambda: float(next(clock)), lambda done, total, text: told.append((done, total)), step=2
    )
    # Five readings of the clock for each grant: three steps one after the other, and the sealing once more.
    assert measured.each == (3.0,) * 7
    assert told == [(0, 7), (2, 7), (4, 7), (6, 7), (7, 7)]
    assert measured.grant_bytes == len(bundle.grant)
    assert measured.request_bytes == len(bundle.request)
    once = len(bundle.release) + len(bundle.ciphertext)
    assert measured.shared_bytes(7) == once + 7 * len(bundle.grant)
    assert measured.separate_bytes(7) == 7 * measured.shared_bytes(1)
    assert not list(tmp_path.iterdir())


def run(*arguments: str) -> int:
    app = make_app("A test.")
    bench_command.register(app)
    with pytest.raises(SystemExit) as ended:
        run_app(app, ["bench", "bundle", *arguments])
    assert isinstance(ended.value.code, int)
    return ended.value.code


SMALL = ("--megabytes", "0.05", "--repeats", "2", "--audiences", "3")


def test_the_command_writes_a_table_a_file_and_a_figure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file, figure = tmp_path / "bundle.json", tmp_path / "audiences.png"
    arguments = (*SMALL, "--kem", "mlkem768-x25519", "--folder", str(tmp_path))
    assert run(*arguments, "--json", str(json_file), "--figure", str(figure)) == 0
    out, err = capsys.readouterr()
    result = BundleBenchmark.model_validate_json(json_file.read_bytes())
    assert (result.kem, result.repeats, result.within_target) == ("mlkem768-x25519", 2, None)
    assert result.audiences is not None
    assert result.audiences.audiences == 3
    for timing in result.timings:
        assert timing.name in out
    assert "at most 1.15 x SHA-256 of 56 MB or more" in out
    assert str(result.audiences.grant_bytes) in out
    assert figure.read_bytes().startswith(b"\x89PNG\r\n")
    assert err.splitlines() == ["making a learngene", "measuring the bundle", "measuring memory", "granting"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--json", "HERE/old"), "is not overwritten"),
        (("--figure", "HERE/old"), "is not overwritten"),
        (("--json", "HERE/none/new"), "there is no folder"),
        (("--folder", "HERE/none"), "there is no folder"),
        (("--kem", "rsa"), "x25519, mlkem768-x25519"),
        (("--figure", "HERE/new.png", "--audiences", "0"), "--audiences"),
        (("--megabytes", "1000"), "--megabytes"),
    ],
)
def test_wrong_input_is_said_in_one_line_before_the_work(
    arguments: tuple[str, ...], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "old").write_bytes(b"old")
    assert run(*SMALL, *(argument.replace("HERE", str(tmp_path)) for argument in arguments)) == 2
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert says in err
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_without_matplotlib_the_figure_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bundle_command, "find_spec", lambda name: None)
    assert run(*SMALL, "--figure", str(tmp_path / "new.png")) == 2
    assert "pip install 'learngene[sim]'" in capsys.readouterr().err
    assert run(*SMALL) == 0  # everything else goes without


def test_the_random_learngene_may_leave_a_site(bundle: Bundle) -> None:
    """Otherwise a step that every real one passes would be left out."""
    policy = Policy.for_role("collective")
    assert egress(policy, bundle.release) == bundle.release
    described = payloads.decode(Release, envelope.parse(bundle.release).payload).ciphertext
    assert (described.size, described.sha256) == (len(bundle.ciphertext), digest_of(bundle.ciphertext))
