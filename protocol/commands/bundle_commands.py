"""The commands ``learngene inspect`` and ``learngene verify``: the content of a file, and what of it is proven."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.commands import inspection, trust_commands
from protocol.commands.bundle_options import EncryptionKeyOption, KeyFileOption, RootOption, TrustOption
from protocol.commands.inspection import Bundle, Facts
from protocol.commands.revocation_warning import warn_revoked
from protocol.encoding.calendar import moment
from protocol.files.user_files import named_refusals, read_start
from protocol.keys.signing_key import fingerprint
from protocol.messages import bundle_file
from protocol.node.bundle_reading import Reading, read_bundle
from protocol.output import add_row, lines, print_table, say, say_json, table
from protocol.visible_text import visible_name

_NOT_VERIFIED = "NOT VERIFIED: anybody may have written this file; nothing that follows is proven (learngene verify)."

_Step = tuple[str, str, str]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    app.command()(inspect)
    app.command()(verify)


def inspect(
    file: Annotated[Path, typer.Argument(help="A bundle file, one message of an exchange, or a trust store.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show what a file says of itself. Nothing of it is verified.

    \b
    Example:
      learngene inspect condensed.learngene
    """
    found: inspection.Bundle | inspection.Message | inspection.TrustFile
    with named_refusals(file):
        if bundle_file.is_bundle(file):
            found = inspection.inspect_bundle(bundle_file.read(file))
        else:
            found = inspection.inspect(read_start(file, "the file", max_bytes=inspection.MAX_BYTES + 1))
    if isinstance(found, inspection.TrustFile):
        if not as_json:
            say(_NOT_VERIFIED)
        trust_commands.show(file, "", as_json)
    elif as_json:
        say_json({"verified": False, **found.values}, indent=2)
    else:
        say(_NOT_VERIFIED)
        if isinstance(found, inspection.Bundle):
            _show_bundle(found)
        else:
            _show_facts(found.payload.kind, found.facts)


def verify(
    file: Annotated[Path, typer.Argument(help="A bundle file.")],
    trust: TrustOption = None,
    root: RootOption = "",
    encryption_key: EncryptionKeyOption = None,
    key_file: KeyFileOption = None,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Instead of all these: the configuration file of the individual's node, with its keys and its ledger.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Verify a bundle file, and say step by step what was verified and what was not.

    \b
    Examples:
      learngene verify condensed.learngene --trust trust.json --root HEX
      learngene verify condensed.learngene --config ~/individual/config.toml

    Without --root, the root key that the trust store itself names is believed, and the result says so.
    """
    reading = read_bundle(file, config=config, trust=trust, root=root, encryption_key=encryption_key, key_file=key_file)
    _report(file, reading)


def _show_bundle(bundle: Bundle) -> None:
    _show_facts("release", bundle.release.facts)
    shown = table(
        "block", "from", "convolution", "pooled", "parameters", "Fisher entries",
        title="layers", right=("block", "parameters", "Fisher entries"),
    )  # fmt: skip
    for row in inspection.layers(bundle.described):
        add_row(shown, *row)
    print_table(shown)
    _show_facts("grant", bundle.grant.facts)
    said = bundle.described.ciphertext.size
    fits = "as many as the release says" if len(bundle.blob) == said else f"the release says {said:,}"
    _show_facts("blob", [("bytes", f"{len(bundle.blob):,}, {fits}"), ("content", "sealed; only its audience opens it")])


def _show_facts(title: str, facts: Facts) -> None:
    shown = table(title=title)
    for name, value in facts:
        add_row(shown, name, lines(value))
    print_table(shown)


def _report(path: Path, reading: Reading) -> None:
    """The steps of the verification: what was proven, and what was not."""
    content = "and its content" if reading.opened is not None else "but not its content"
    say(f"{visible_name(path)}: signatures and ciphertext are verified, {content}")
    if not reading.pinned:
        say("under a root key that nobody pinned: compare its fingerprint with whoever keeps it, or give --root")
    steps = table("step", "result", "what")
    for step in _steps(reading):
        add_row(steps, *step)
    print_table(steps)
    if reading.withdrawn:
        sealed = reading.sealed
        warn_revoked("withdrawn", "this learngene", form=sealed.release.form, release=sealed.release_digest)


def _steps(reading: Reading) -> list[_Step]:
    sealed, trust = reading.sealed, reading.trust
    release, grant = sealed.release, sealed.grant
    collective, individual = trust.key_for(release.signer, "collective"), trust.key_for(grant.audience, "individual")
    store = f"version {trust.version}, root {fingerprint(bytes.fromhex(trust.root))}"
    until = min(release.expires_at, grant.expires_at)
    time = f"until {moment(until)}"
    if reading.late:
        time = f"past its time since {moment(until)}, but this node's ledger committed it in time"
    fisher = "no Fisher diagonal"
    if release.fisher is not None:
        fisher = f"a Fisher diagonal from {release.fisher.samples:,} samples"

    def step(name: str, proven: bool, what: str, otherwise: str = "", instead: str = "NOT VERIFIED") -> _Step:
        return (name, "verified", what) if proven else (name, instead, otherwise)

    return [
        step("trust store", reading.pinned, f"{store}, pinned", f"{store}, which the file names itself", "BELIEVED"),
        step("signatures", True, f"of {collective.party}, key {collective.epoch}: {fingerprint(collective.raw)}"),
        step("agreement", True, f"release {release.seq} of run {release.run_id}, {sealed.release_digest}"),
        step("audience", True, f"{individual.party}: {fingerprint(individual.raw)}"),
        step("time", True, time),
        step(
            "chain",
            reading.asked_ledger,
            "it fits what this node's ledger has seen of the run",
            "no ledger was asked for earlier releases (--config)",
        ),
        step(
            "withdrawal",
            reading.asked_ledger and not reading.withdrawn,
            "this node has not heard of any",
            "the collective has taken it back" if reading.withdrawn else "no ledger was asked for it (--config)",
            "WITHDRAWN" if reading.withdrawn else "NOT VERIFIED",
        ),
        step("policy", True, f"the tensors of the form {release.form}, no classifier; {fisher}"),
        step("ciphertext", True, f"{release.ciphertext.size:,} bytes, {release.ciphertext.sha256}"),
        step(
            "content",
            reading.opened is not None,
            f"opened: {len(release.tensors)} tensors as signed, all values finite",
            f"sealed; the encryption key of {individual.party} opens it (--encryption-key)",
        ),
        step("newest", False, "", "a file answers no open request, so a later release may exist"),
    ]
