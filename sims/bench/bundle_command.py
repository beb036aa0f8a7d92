"""The command ``learngene bench bundle``."""

import platform
import tempfile
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from cryptography.hazmat.backends.openssl.backend import backend

from protocol.commands.key_commands import kem_named
from protocol.commands.progress_bar import progress_bar
from protocol.errors import InputError
from protocol.files.user_files import check_free, write_new
from protocol.keys.kem import Kem
from protocol.output import add_row, print_table, say, table
from sims.bench import bundle_timing
from sims.bench.audiences_timing import measure_audiences
from sims.bench.made_bundle import architecture_of, make_bundle, random_learngene
from sims.bench.measurements import (
    MEGABYTE,
    OPEN,
    SHA256,
    TARGET,
    TARGET_BYTES,
    VERIFY_AND_PARSE,
    WHOLE,
    BundleBenchmark,
    ratio,
    spread,
)
from sims.bench.memory import measure_memory
from sims.bench.processor import processor
from sims.bench.rows import with_range

_MOST_MEGABYTES = 256
# Factor by which the time of the same work may differ on an idle machine.
_BUSY = 1.5


def bundle(
    megabytes: Annotated[
        float, typer.Option(help="Size of the learngene, 10^6 bytes.", min=0.01, max=_MOST_MEGABYTES)
    ] = 57,
    repeats: Annotated[int, typer.Option(help="How often everything is measured.", min=1, max=1000)] = 7,
    audiences: Annotated[
        int, typer.Option(help="Individuals to whom the one release is granted; 0: none.", min=0, max=8000)
    ] = 1000,
    kem: Annotated[str, typer.Option(help="What grants are sealed with: x25519 or mlkem768-x25519.")] = "x25519",
    folder: Annotated[
        Path | None,
        typer.Option(
            help="Where the ledger lies while it is measured: on the disk whose speed counts. [default: the system's "
            "folder for temporary files]",
            show_default=False,
        ),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File to write everything measured to.", show_default=False)
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="File.png to draw the audiences to (needs matplotlib).", show_default=False)
    ] = None,
) -> None:
    """Time signing, sealing, opening and verifying a random learngene beside SHA-256 and a copy of the same bytes.

    \b
    Example:
      learngene bench bundle --json bundle.json --figure audiences.png
    """
    encapsulation = kem_named(kem)
    where = _folder(folder)
    for out in (json_file, figure):
        if out is not None:
            check_free(out)
    if figure is not None and audiences == 0:
        raise InputError("--figure shows the audiences; ask for at least one with --audiences")
    if figure is not None and find_spec("matplotlib") is None:
        raise InputError("the figure needs matplotlib; install it with: pip install 'learngene[sim]'")
    result = _measure(megabytes, repeats, audiences, encapsulation, where)
    _show(result)
    if json_file is not None:
        write_new(json_file, result.model_dump_json(indent=2).encode("ascii") + b"\n", mode=0o644)
        say(f"{json_file}")
    if figure is not None:
        # Imported here: everything else works without matplotlib, which is in the extra `sim`.
        from sims.bench.figure import audiences_figure

        write_new(figure, audiences_figure(result), mode=0o644)
        say(f"{figure}")


def _measure(megabytes: float, repeats: int, audiences: int, kem: Kem, folder: Path) -> BundleBenchmark:
    clock = time.perf_counter
    # Without a thread, because it would be measured too.
    with progress_bar(thread=False) as observe:
        observe(0, repeats, "making a learngene")
        learngene = random_learngene(architecture_of(round(megabytes * MEGABYTE)), np.random.default_rng(0))
        made = make_bundle(learngene, kem)
        seconds = bundle_timing.measure_pieces(bundle_timing.works(made, learngene), repeats, clock, observe)
        observe(0, 1, "measuring memory")
        memory = measure_memory(made, folder)
        measured = measure_audiences(made, audiences, folder, clock, observe) if audiences else None
    timings = bundle_timing.timings(seconds, len(made.plaintext))
    verify = next(timing for timing in timings if timing.name == VERIFY_AND_PARSE)
    return BundleBenchmark(
        machine=_machine(),
        kem=kem,
        repeats=repeats,
        tensors=len(learngene.tensors),
        plaintext_bytes=len(made.plaintext),
        release_bytes=len(made.release),
        within_target=verify.to_sha256.median <= TARGET if len(made.plaintext) >= TARGET_BYTES else None,
        opening_share=ratio(seconds[OPEN], seconds[WHOLE]),
        timings=timings,
        memory=memory,
        audiences=measured,
    )


def _show(result: BundleBenchmark) -> None:
    numbers = ("ms", "MB/s", "x SHA-256", "x memory copy")
    title = f"{result.plaintext_bytes / MEGABYTE:.2f} MB in {result.tensors} tensors, {result.repeats} repeats"
    timings = table("", *numbers, "target", title=title, right=numbers)
    verdict = {True: ": met", False: ": MISSED", None: f" of {TARGET_BYTES // MEGABYTE} MB or more"}
    for timing in result.timings:
        add_row(
            timings,
            timing.name,
            f"{1000 * timing.seconds.median:.2f}",
            f"{timing.megabytes_per_second:.0f}",
            with_range(timing.to_sha256),
            with_range(timing.to_copy),
            f"at most {TARGET} x SHA-256{verdict[result.within_target]}" if timing.name == VERIFY_AND_PARSE else "",
        )
    print_table(timings)
    share = result.opening_share
    say(
        f"Opening (HPKE, AES-256-GCM) is {100 * share.median:.0f} % of the whole verification"
        f" ({100 * share.smallest:.0f} to {100 * share.largest:.0f} %)."
    )
    say("Medians; ratios are taken within each repeat, smallest and largest in brackets.")
    sha256 = result.timing(SHA256).seconds
    if sha256.largest > _BUSY * sha256.smallest:
        say(
            f"The machine was busy with other things: SHA-256 of the same bytes took {1000 * sha256.smallest:.0f} to"
            f" {1000 * sha256.largest:.0f} ms. Measure again when it is quiet."
        )
    sizes = ("MB", "of the learngene")
    memory = table("", *sizes, title="Peak memory beyond the received bytes", right=sizes)
    for row in result.memory:
        add_row(memory, row.name, f"{row.bytes / MEGABYTE:.2f}", f"{100 * row.bytes / result.plaintext_bytes:.0f} %")
    print_table(memory)
    if result.audiences is not None:
        _show_audiences(result)
    say(", ".join(f"{name} {value}" for name, value in result.machine.items()))


def _show_audiences(result: BundleBenchmark) -> None:
    found = result.audiences
    assert found is not None
    count = found.audiences
    grants = table("", "ms", title=f"One grant of {count}, sealed with {result.kem}", right=("ms",))
    for name, seconds in (
        ("verify the request", found.verify),
        ("seal and sign", found.seal_and_sign),
        ("  of it the sealing", found.seal),
        ("store durably", found.store),
        ("together", spread(found.each)),
    ):
        add_row(grants, name, with_range(seconds, 1000))
    print_table(grants)
    shared, separate = found.shared_bytes(count) / MEGABYTE, found.separate_bytes(count) / MEGABYTE
    say(f"A grant has {found.grant_bytes} bytes, the release {found.release_bytes}, a request {found.request_bytes}.")
    say(
        f"One blob for {count} individuals: {shared:.2f} MB in all; a blob for each: {separate:.2f} MB"
        f" ({separate / shared:.0f} times as much)."
    )


def _folder(folder: Path | None) -> Path:
    if folder is None:
        return Path(tempfile.gettempdir())
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}; --folder names one on the disk that is to be measured")
    return folder


def _machine() -> dict[str, str]:
    """The machine on which the times were measured."""
    return {
        "processor": processor(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "cryptography": version("cryptography"),
        "openssl": backend.openssl_version_text().removeprefix("OpenSSL "),
    }
