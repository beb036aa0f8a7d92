"""The collective's half of an exchange by files, and its releases: ``grant``, ``receipt``, ``releases``, ``withdraw``.

All of them work on the node's own ledger, and may do so while the node is running.
"""

import secrets
from pathlib import Path
from typing import Annotated, get_args

import typer

from protocol.encoding.calendar import moment, unix_seconds
from protocol.errors import InputError, LearngeneError
from protocol.exchange.collective_endpoint import CollectiveEndpoint, Withdrawal
from protocol.exchange.collective_ledger import StoredRelease
from protocol.files.user_files import check_free, named_refusals, read_limited, write_new
from protocol.learngene.architecture import Form
from protocol.messages import bundle_file, envelope
from protocol.messages.bundle_file import BundleFile
from protocol.messages.payloads import MOST_WITHDRAWN
from protocol.messages.sealing import CONTENT_KEY_BYTES
from protocol.node.endpoints import collective_ledger, node_of, open_endpoint
from protocol.output import add_row, print_table, say, say_json, table

#: Fewest digits of a digest that name a release; fewer digits are read as its number.
_SHORTEST_DIGEST = 8

_Config = Annotated[Path, typer.Option(help="Configuration file of the collective's node.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (grant, receipt, releases, withdraw):
        app.command()(command)


def grant(
    config: _Config,
    request: Annotated[Path, typer.Option(help="An individual's request: `individual-node request` wrote it.")],
    out: Annotated[Path, typer.Option(help="File to write for the individual, by custom NAME.learngene.")],
) -> None:
    """Answer a request with the newest learngene of its form, as a file; with a notice, if that was withdrawn.

    \b
    Example:
      collective-node grant --config ~/collective/config.toml --request request.json --out condensed.learngene

    `individual-node inherit` takes both. The same request has the same answer.
    """
    check_free(out)
    endpoint = open_endpoint(node_of(config, "collective"), CollectiveEndpoint)
    with named_refusals(request):
        data = read_limited(request, "a request", max_bytes=envelope.MAX_BYTES)
        answer = endpoint.answer_request(data, unix_seconds())
    if isinstance(answer, Withdrawal):
        write_new(out, answer.abort)
        say(f"{out}  a notice and no learngene: the one that is asked for was withdrawn and not replaced")
        return
    bundle = BundleFile(*answer)
    bundle_file.write(out, bundle)
    say(f"{out}  a bundle file, {len(bundle_file.encode(bundle))} bytes, sealed to whoever asked")


def receipt(
    config: _Config,
    file: Annotated[Path, typer.Argument(help="An individual's receipt: `individual-node inherit` wrote it.")],
) -> None:
    """Take an individual's receipt; the same again changes nothing.

    \b
    Example:
      collective-node receipt --config ~/collective/config.toml receipt.json
    """
    endpoint = open_endpoint(node_of(config, "collective"), CollectiveEndpoint)
    with named_refusals(file):
        data = read_limited(file, "a receipt", max_bytes=envelope.MAX_BYTES)
        verified = endpoint.accept_receipt(data, unix_seconds())
    say(f"{verified.key.party} has stored release {verified.payload.release}")


def releases(
    config: _Config,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list instead of a table.")] = False,
) -> None:
    """List the releases of this node's run: the chain, first to last.

    \b
    Example:
      collective-node releases --config ~/collective/config.toml
    """
    node = node_of(config, "collective")
    ledger = collective_ledger(node)
    chain = [
        (release, len(ledger.granted(release.digest)), len(ledger.receipts(release.digest)))
        for release in ledger.releases(node.run_id)
    ]
    if as_json:
        say_json([_described(*entry) for entry in chain], indent=2)
        return
    if not chain:
        say(f"nothing is published in run {node.run_id} yet")
        return
    shown = table(
        "number", "form", "signed", "valid until", "withdrawn", "granted to", "receipts", "digest",
        title=f"releases of run {node.run_id}", right=("number", "granted to", "receipts"),
    )  # fmt: skip
    for release, granted, receipts in chain:
        payload = release.payload
        add_row(
            shown,
            str(release.seq),
            payload.form,
            moment(payload.issued_at),
            moment(payload.expires_at),
            "yes" if release.withdrawn else "no",
            str(granted),
            str(receipts),
            release.digest,
        )
    print_table(shown)


def withdraw(
    config: _Config,
    release: Annotated[
        str, typer.Argument(help="Which one: its number, or at least 8 digits of its digest: `releases` lists them.")
    ],
) -> None:
    """Take a release back: it is granted no more, and every individual that asks again is told.

    \b
    Example:
      collective-node withdraw --config ~/collective/config.toml 3

    What the collective grants instead, in any form, is released once more, because only a release announces the
    withdrawal; that needs the signing key. The same command again does what is left to do.
    """
    node = node_of(config, "collective")
    ledger = collective_ledger(node)
    found = _find(ledger.releases(node.run_id), release)
    # Withdraw before any key is opened: the withdrawal then stands, whatever fails later.
    withdrawn = ledger.withdraw(node.run_id, found.digest)
    if found.withdrawn:
        say(f"release {found.seq} was withdrawn before, {found.digest}")
    else:
        for one in withdrawn:
            say(f"withdrawn  release {one.seq}, {one.payload.form}, {one.digest}")
        granted = len({keyid for one in withdrawn for keyid in ledger.granted(one.digest)})
        say(f"It was granted to {granted} individual{'' if granted == 1 else 's'}.")
    newest = [ledger.latest(node.run_id, form) for form in get_args(Form)]
    if any(one is not None and not one.withdrawn for one in newest):
        try:
            endpoint = open_endpoint(node, CollectiveEndpoint)
            again = endpoint.release_again(unix_seconds(), lambda: secrets.token_bytes(CONTENT_KEY_BYTES))
        except LearngeneError:
            say("It is granted no more, but not every release tells of it yet: mend what is said below, then give")
            say("the same command again.")
            raise
        for one in again:
            say(f"released   {one.payload.form} once more, as release {one.seq}, which tells of it")
    say("Whoever requests from now on is told, by the answer or by the next release that is published.")
    if len(ledger.withdrawn(node.run_id)) > MOST_WITHDRAWN:
        say(f"Of all that are withdrawn, a release names the {MOST_WITHDRAWN} with the highest numbers only.")


def _find(chain: list[StoredRelease], text: str) -> StoredRelease:
    """The one release of a chain that a number or the beginning of a digest names.

    Raises:
        InputError: no release has this name, or several have.
    """
    if text.isascii() and text.isdecimal() and len(text) < _SHORTEST_DIGEST:
        found = [release for release in chain if release.seq == int(text)]
    elif len(text) >= _SHORTEST_DIGEST:
        found = [release for release in chain if release.digest.startswith(text.lower())]
    else:
        found = []
    if len(found) != 1:
        many = "more than one release" if found else "no release"
        raise InputError(f"this run has {many} {text!r}; `collective-node releases` lists numbers and digests")
    return found[0]


def _described(release: StoredRelease, granted: int, receipts: int) -> dict[str, object]:
    payload = release.payload
    return {
        "number": release.seq,
        "form": payload.form,
        "digest": release.digest,
        "issued_at": payload.issued_at,
        "expires_at": payload.expires_at,
        "withdrawn": release.withdrawn,
        "withdraws": list(payload.withdraws),
        "granted": granted,
        "receipts": receipts,
    }
