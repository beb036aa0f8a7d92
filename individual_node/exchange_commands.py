"""The individual's half of an exchange by files: ``request``, ``inherit`` and ``bundle``. Mail or a memory stick
carries the files."""

import secrets
from pathlib import Path
from typing import Annotated, get_args

import typer

from protocol.commands.revocation_warning import warn_revoked
from protocol.digest import digest_of
from protocol.encoding.calendar import unix_seconds
from protocol.errors import InputError, RunFailedError
from protocol.exchange.individual_endpoint import IndividualEndpoint, Inheritance
from protocol.files.user_files import check_free, named_refusals, read_limited, write_new
from protocol.learngene.architecture import Form, form_named
from protocol.messages import bundle_file, envelope, payloads
from protocol.messages.payloads import Abort
from protocol.node.endpoints import node_of, open_endpoint
from protocol.output import say
from protocol.trust.policy_file import load_policy

_CONFIG_HELP = "Configuration file of this individual's node."


def register(app: typer.Typer) -> None:
    """Add the commands to an application."""
    for command in (request, inherit, bundle):
        app.command()(command)


def request(
    config: Annotated[Path, typer.Option(help=_CONFIG_HELP)],
    out: Annotated[Path, typer.Option(help="File to write, for the collective.")],
    form: Annotated[str, typer.Option(help="Form of the learngene.")] = "condensed",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Make a new request, even though an earlier one waits for its answer.")
    ] = False,
) -> None:
    """Write a request for a learngene, to be taken to the collective.

    \b
    Example:
      individual-node request --config ~/individual/config.toml --form condensed --out request.json

    The collective answers it within 7 days: `collective-node grant`. The same request, while it waits for its answer,
    is written again as it is.
    """
    wanted = _form_of(form)
    check_free(out)
    endpoint = open_endpoint(node_of(config, "individual"), IndividualEndpoint, new=True)
    data = endpoint.request(wanted, unix_seconds(), secrets.token_bytes(16), fresh=fresh)
    write_new(out, data)
    say(f"{out}  a request for the form {form}, {len(data)} bytes: take it to the collective")


def inherit(
    config: Annotated[Path, typer.Option(help=_CONFIG_HELP)],
    file: Annotated[Path, typer.Argument(help="What the collective answered: a bundle file or a notice.")],
    receipt: Annotated[
        Path | None, typer.Option(help="File to write the receipt to, for the collective.", show_default=False)
    ] = None,
) -> None:
    """Verify and keep a learngene that answers this node's request, or take the notice that it was withdrawn.

    \b
    Example:
      individual-node inherit --config ~/individual/config.toml condensed.learngene --receipt receipt.json
    """
    if receipt is not None:
        check_free(receipt)
    node = node_of(config, "individual")
    endpoint, policy = open_endpoint(node, IndividualEndpoint), load_policy(node.policy, "individual")
    with named_refusals(file):
        if bundle_file.is_bundle(file):
            bundle = bundle_file.read(file, largest_blob=policy.largest_blob)
            inheritance = endpoint.inherit(*bundle, unix_seconds())
        else:
            notice_bytes = read_limited(file, "a notice", max_bytes=envelope.MAX_BYTES)
            bundle, notice = None, endpoint.accept_abort(notice_bytes, unix_seconds()).payload
    if bundle is None:
        _say_notice(notice)
        return
    _say_inherited(inheritance, digest_of(bundle.release), endpoint)
    if receipt is not None:
        write_new(receipt, inheritance.receipt)
        say(f"receipt    {receipt}: take it to the collective")


def bundle(
    config: Annotated[Path, typer.Option(help="Configuration file of the node that inherited the learngene.")],
    out: Annotated[Path, typer.Option(help="File to write, by custom NAME.learngene.")],
    form: Annotated[str, typer.Option(help="Form of the learngene.")] = "condensed",
) -> None:
    """Pack the newest learngene that the node inherited into one file.

    \b
    Example:
      individual-node bundle --config ~/individual/config.toml --out condensed.learngene

    It was granted to this individual: its content opens with this node's encryption key only. For 7 days everyone who
    pins the same keys can verify its signatures; longer only this node, which has it in its ledger.
    """
    wanted = _form_of(form)
    check_free(out)
    endpoint = open_endpoint(node_of(config, "individual"), IndividualEndpoint)
    packed = endpoint.bundle(wanted)
    if packed is None:
        raise InputError(f"this node has inherited nothing of the form {form} in its run yet: request it first")
    bundle_file.write(out, packed)
    say(f"{out}  {len(bundle_file.encode(packed))} bytes")
    release = digest_of(packed.release)
    signer = payloads.decode(payloads.Release, envelope.parse(packed.release).payload).signer
    status = endpoint.revocation_status(release, signer)
    if status is not None:
        warn_revoked(status, "this learngene", form=form, release=release)


def _form_of(word: str) -> Form:
    """The form of this name.

    Raises:
        InputError: there is no such form.
    """
    form = form_named(word)
    if form is None:
        raise InputError(f"{word!r} is no form of a learngene; there are: {', '.join(get_args(Form))}")
    return form


def _say_notice(notice: Abort) -> None:
    if notice.code != "withdrawn" or notice.subject is None:
        raise RunFailedError(f"the collective answered with an abort, code {notice.code}; ask it what to do")
    say(f"withdrawn  release {notice.subject}")
    say("The collective has taken this learngene back and published no other: nothing was inherited. What was")
    say("adapted from it says so from now on. Request again later.")


def _say_inherited(inheritance: Inheritance, arrived: str, endpoint: IndividualEndpoint) -> None:
    """``arrived``: digest of the release in the file, which may be older than the newest one here."""
    learngene = inheritance.learngene
    release, digest = learngene.release, learngene.release_digest
    if arrived != digest:
        say(f"The file holds the older release {arrived}; the newest here stays:")
    say(f"inherited  {release.form}, release {release.seq} of run {release.run_id}, {digest}")
    for withdrawn in release.withdraws:
        say(f"withdrawn  release {withdrawn}")
    status = endpoint.revocation_status(digest, release.signer)
    if status is not None:
        warn_revoked(status, "this learngene", form=release.form, release=digest)
