"""The commands ``learngene trust init|add|revoke|rotate|renew|show``: for the keeper of the offline root key."""

import contextlib
import re
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer

from protocol.encoding.calendar import day, unix_seconds
from protocol.errors import InputError
from protocol.files.user_files import check_free
from protocol.keys import signing_key
from protocol.keys.passphrase import unlock_with
from protocol.keys.signing_key import SigningKey, read_fingerprint, read_public
from protocol.output import PlainTable, add_row, print_table, say, say_json, table, warn
from protocol.trust.role import Role
from protocol.trust.root_handover import Handover
from protocol.trust.trust_file import read_trust, write_trust
from protocol.trust.trust_store import PARTY_PATTERN, RevokedKey, TrustedKey, TrustStore
from protocol.visible_text import visible_name

#: Why an operator revokes a key; `superseded` is what `rotate` says.
_Why = Literal["compromised", "retired"]
_ROLES: tuple[Role, ...] = get_args(Role)
_WHYS: tuple[_Why, ...] = get_args(_Why)

_DAY = 24 * 3600
#: Fewest hexadecimal digits of a key id that name a key.
_SHORTEST_KEYID = 8
#: Days before its end from which every command asks for a renewal.
_SOON = 30

_RootKey = Annotated[Path, typer.Option(help="File with the root's private key; it stays offline.")]
_Trust = Annotated[Path, typer.Option(help="The trust store.")]
_KeyFile = Annotated[
    Path | None,
    typer.Option(help="File that opens the root key; without it a passphrase is asked for.", show_default=False),
]
_Days = Annotated[int, typer.Option(help="Days for which the store holds, from now.", min=1, max=3650)]
_Fingerprint = Annotated[
    str, typer.Option(help="The fingerprint that the key's owner read to you; it must fit.", show_default=False)
]
_Role = Annotated[str, typer.Option(help="collective or individual.")]
_Party = Annotated[str, typer.Option(help="The party's name.")]
_Public = Annotated[str, typer.Option(help="The party's public key: 64 hexadecimal digits, as its `init` printed it.")]
_Epoch = Annotated[
    int | None,
    typer.Option(
        help="How many keys the party has had with this one, as another trust store counted them (`show`).",
        min=1,
        max=2**31,
        show_default="as this trust store counts",
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``trust`` with its commands to an application."""
    trust = typer.Typer(
        help="The public keys that nodes believe, in a file that an offline root key signs.",
        no_args_is_help=False,
        rich_markup_mode=None,
    )
    for name, command in (
        ("init", init),
        ("add", add),
        ("revoke", revoke),
        ("rotate", rotate),
        ("renew", renew),
        ("show", show),
    ):
        trust.command(name)(command)
    app.add_typer(trust, name="trust")


def init(
    root_key: _RootKey,
    out: Annotated[Path, typer.Option(help="File to write; nodes know it as trust.json.")],
    old: Annotated[
        Path | None,
        typer.Option("--from", help="Trust store whose root key is lost or stolen: take it over.", show_default=False),
    ] = None,
    root: Annotated[
        str,
        typer.Option(
            help="With --from: public key of the root that it has, 64 hexadecimal digits.", show_default=False
        ),
    ] = "",
    days: _Days = 365,
    key_file: _KeyFile = None,
) -> None:
    """Make a trust store with no key in it, or one in which a new root takes over from a root whose key is gone.

    What is taken over: the keys with their epochs, those that are revoked with the reason, and the version, which
    counts on. Every node must be told the new root: `root` in its config.toml. Where the old root key is still there,
    `rotate` is better: nodes follow it by themselves.

    \b
    Examples:
      learngene trust init --root-key root.key --out trust.json
      learngene trust init --root-key root-2.key --from trust.json --root HEX --out trust-2.json
    """
    check_free(out)
    if (old is None) != (not root):
        raise InputError(
            "--from goes with --root: the root that the old trust store has, as a node's config.toml says it"
        )
    before = None if old is None else read_trust(old, root=read_public(root, "--root"))
    key, expires_at = _root_key(root_key, key_file), unix_seconds() + days * _DAY
    if before is None:
        store = TrustStore(root=key.public_hex, expires_at=expires_at)
    else:
        store = before.taken_over(key.public_hex, expires_at)
    write_trust(out, store, key, new=True)
    say(f"root           {key.public_hex}")
    say(f"fingerprint    {key.fingerprint}")
    if before is not None:
        say(f"taken over     {len(store.keys)} keys and {len(store.revoked)} revoked ones; look: trust show")
    _say_version(out, store)
    say(f"Every node pins this root: collective-node init --root {key.public_hex} ...")


def add(
    root_key: _RootKey,
    trust: _Trust,
    role: _Role,
    party: _Party,
    public: _Public,
    fingerprint: _Fingerprint = "",
    epoch: _Epoch = None,
    key_file: _KeyFile = None,
) -> None:
    """Pin a party's public key, after comparing its fingerprint with its owner over another channel.

    \b
    Example:
      learngene trust add --root-key root.key --trust trust.json --role individual --party individual-1 --public HEX
    """
    wanted = _role(role)
    _check_party(party)
    public = _public(public, fingerprint)
    key, store = _open(root_key, key_file, trust)
    store = store.with_key(public, wanted, party, epoch=epoch)
    write_trust(trust, store, key)
    _say_pinned(store.keys[-1], compared=bool(fingerprint))
    _say_version(trust, store)


def revoke(
    root_key: _RootKey,
    trust: _Trust,
    key: Annotated[str, typer.Argument(help="Which key: its party's name, its fingerprint, or 8 digits of its id.")],
    reason: Annotated[str, typer.Option(help="compromised: others may have it; retired: its owner has left.")],
    key_file: _KeyFile = None,
) -> None:
    """Believe a key no more. It never comes back; the next key of its party is pinned with `add`. A key that is in good
    hands is replaced with `rotate`, in one step.

    A former key, retired or replaced, can be marked as compromised later: name it by its fingerprint or its id.

    \b
    Example:
      learngene trust revoke --root-key root.key --trust trust.json individual-1 --reason compromised
    """
    why = _why(reason)
    signing, store = _open(root_key, key_file, trust)
    found = _find(store, key)
    if isinstance(found, RevokedKey) and (why != "compromised" or found.reason == "compromised"):
        raise InputError(f"{key!r} is revoked already, as {found.reason}: trust show")
    store = store.without_key(found.keyid, why)
    write_trust(trust, store, signing)
    say(f"revoked        {found.role} {found.party}, {_fingerprint(found.public)} ({why})")
    _say_version(trust, store)


def rotate(
    root_key: _RootKey,
    trust: _Trust,
    party: Annotated[str, typer.Option(help="The party that has a new key.", show_default=False)] = "",
    role: Annotated[str, typer.Option(help="Its role: collective or individual.", show_default=False)] = "",
    public: Annotated[str, typer.Option(help="Its new public key: 64 hexadecimal digits.", show_default=False)] = "",
    fingerprint: _Fingerprint = "",
    epoch: _Epoch = None,
    new_root_key: Annotated[
        Path | None, typer.Option(help="Instead: file with a new root key, which takes over.", show_default=False)
    ] = None,
    key_file: _KeyFile = None,
    new_key_file: Annotated[
        Path | None, typer.Option(help="File that opens the new root key.", show_default=False)
    ] = None,
) -> None:
    """Replace a party's key by its new one, or the root key by a new root key.

    A new root is signed by the old one and by itself, so a node that pins the old one follows. Where the old root key
    may be in other hands, its thief could do the same: there a new root takes over with `init --from`.

    \b
    Examples:
      learngene trust rotate --root-key root.key --trust trust.json --party collective --role collective --public HEX
      learngene trust rotate --root-key root.key --trust trust.json --new-root-key root-2.key
    """
    if new_root_key is not None:
        if party or role or public or fingerprint or epoch is not None:
            raise InputError(
                "--new-root-key replaces the root key alone; --party, --role and --public are for a party's"
            )
        old_key, store = _open(root_key, key_file, trust)
        new_key = SigningKey.load(new_root_key, unlock_with(new_key_file, purpose=f"the new root key {new_root_key}"))
        store = store.with_root(Handover.make(old_key, new_key))
        write_trust(trust, store, new_key)
        say(f"root           {new_key.public_hex}")
        say(f"fingerprint    {new_key.fingerprint}")
    else:
        if not (party and role and public):
            raise InputError("give --party, --role and --public, or --new-root-key")
        wanted = _role(role)
        public = _public(public, fingerprint)
        old_key, store = _open(root_key, key_file, trust)
        store = store.with_rotated_key(party, wanted, public, epoch=epoch)
        write_trust(trust, store, old_key)
        _say_pinned(store.keys[-1], compared=bool(fingerprint))
    _say_version(trust, store)


def renew(root_key: _RootKey, trust: _Trust, days: _Days = 365, key_file: _KeyFile = None) -> None:
    """Let the trust store hold for longer.

    \b
    Example:
      learngene trust renew --root-key root.key --trust trust.json --days 365
    """
    key, store = _open(root_key, key_file, trust)
    store = store.with_expiry(unix_seconds() + days * _DAY)
    write_trust(trust, store, key)
    _say_version(trust, store)


def show(
    trust: _Trust,
    root: Annotated[
        str, typer.Option(help="The pinned root's public key: 64 hexadecimal digits.", show_default=False)
    ] = "",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
) -> None:
    """Show who is believed, with fingerprints to read aloud.

    Without --root the file is only compared with itself: that proves nothing about who made it.

    \b
    Example:
      learngene trust show --trust trust.json --root HEX
    """
    store = read_trust(trust, root=read_public(root, "--root") if root else None)
    if as_json:
        say_json(_description(store, pinned=bool(root)), indent=2)
    else:
        _show_tables(trust, store, pinned=bool(root))


def _open(root_key: Path, key_file: Path | None, trust: Path) -> tuple[SigningKey, TrustStore]:
    """The root key, and the trust store that it signed.

    Raises:
        InputError: the key does not open, or the store has a newer root. RefusedError: the store is not the root's.
    """
    key = _root_key(root_key, key_file)
    store = read_trust(trust, root=key.public_hex)
    if store.root != key.public_hex:
        raise InputError(f"{root_key} was the root of {trust} once; the one of now is {_fingerprint(store.root)}")
    return key, store


def _root_key(path: Path, key_file: Path | None) -> SigningKey:
    if not path.exists():
        # Check before asking for a passphrase.
        raise InputError(f"there is no root key {path}; without it no trust store can be made or changed")
    return SigningKey.load(path, unlock_with(key_file, purpose=f"the root key {path}"))


def _find(store: TrustStore, text: str) -> TrustedKey:
    """The one key, pinned now or earlier, that ``text`` names. A party's name means its present key, as long as it has
    one.

    Raises:
        InputError: no key has this name, or several have.
    """
    every = (*store.keys, *store.revoked)
    present = [key for key in store.keys if key.party == text]
    found = [key for key in every if key in present or _is_fingerprint(key, text) or _is_keyid(key, text)]
    found = found or [key for key in store.revoked if key.party == text]
    if len(found) > 1:
        raise InputError(f"{text!r} names {len(found)} keys; give a fingerprint: trust show")
    if not found:
        raise InputError(f"no key in the trust store is of {text!r}: trust show")
    return found[0]


def _is_fingerprint(key: TrustedKey, text: str) -> bool:
    with contextlib.suppress(InputError):
        return read_fingerprint(text) == _fingerprint(key.public)
    return False


def _is_keyid(key: TrustedKey, text: str) -> bool:
    return len(text) >= _SHORTEST_KEYID and key.keyid.startswith(text.lower())


def _public(text: str, read_aloud: str) -> str:
    """A public key as it is stored; compared with the fingerprint that its owner read aloud, if one is given."""
    public = read_public(text, "--public")
    if read_aloud and read_fingerprint(read_aloud) != _fingerprint(public):
        raise InputError(
            f"the fingerprint is not this key's: its owner said {read_fingerprint(read_aloud)}, the key has"
            f" {_fingerprint(public)}; somebody may have changed the key on its way to you"
        )
    return public


def _check_party(text: str) -> None:
    if not re.fullmatch(PARTY_PATTERN, text):
        raise InputError(
            f"--party {text!r} is no party's name: letters a-z, digits and hyphens, at most 64, such as individual-1"
        )


def _role(text: str) -> Role:
    for role in _ROLES:
        if text == role:
            return role
    raise InputError(f"--role must be {' or '.join(_ROLES)}, not {text!r}")


def _why(text: str) -> _Why:
    for reason in _WHYS:
        if text == reason:
            return reason
    raise InputError(f"--reason must be {' or '.join(_WHYS)}, not {text!r}")


def _fingerprint(public: str) -> str:
    return signing_key.fingerprint(bytes.fromhex(public))


def _say_pinned(key: TrustedKey, *, compared: bool) -> None:
    say(f"pinned         {key.role} {key.party}, epoch {key.epoch}")
    say(f"fingerprint    {_fingerprint(key.public)}")
    if not compared:
        say(f"Compare it with {key.party} over another channel; if it differs, revoke the key.")


def _say_version(path: Path, store: TrustStore) -> None:
    until = day(store.expires_at)
    say(f"version        {store.version} of {visible_name(path)}, holds until {until}; copy it to every node")
    _warn(store)


def _warn(store: TrustStore) -> None:
    left = store.expires_at - unix_seconds()
    if left < 0:
        warn("the trust store is past its time and no node believes it: trust renew")
    elif left < _SOON * _DAY:
        warn(f"the trust store holds for {left // _DAY} more days: trust renew")


def _description(store: TrustStore, *, pinned: bool) -> dict[str, object]:
    """What ``show`` shows, for programs."""

    def described(key: TrustedKey) -> dict[str, object]:
        return {**key.model_dump(mode="json"), "keyid": key.keyid, "fingerprint": _fingerprint(key.public)}

    return {
        "version": store.version,
        "expires_at": store.expires_at,
        "expired": store.expires_at < unix_seconds(),
        "root": {"public": store.root, "fingerprint": _fingerprint(store.root), "pinned": pinned},
        "earlier_roots": [
            {"public": public, "fingerprint": _fingerprint(public)} for public in store.roots if public != store.root
        ],
        "keys": [described(key) for key in store.keys],
        "revoked": [described(key) for key in store.revoked],
    }


def _show_tables(path: Path, store: TrustStore, *, pinned: bool) -> None:
    say(f"{visible_name(path)}: version {store.version}, holds until {day(store.expires_at)}")
    say(f"root           {_fingerprint(store.root)}")
    for public in reversed(store.roots[:-1]):
        say(f"before it      {_fingerprint(public)}")
    believed = _key_table("believed")
    for key in store.keys:
        add_row(believed, *_key_cells(key))
    print_table(believed)
    if store.revoked:
        revoked = _key_table("revoked: believed no more", "why")
        for gone in store.revoked:
            add_row(revoked, *_key_cells(gone), f"{gone.reason}, version {gone.version}")
        print_table(revoked)
    if pinned:
        say("The pinned root vouches for this file.")
    else:
        say(
            "NOT VERIFIED: no root was pinned, so anybody may have made this file; compare the root's fingerprint with"
            " whoever keeps it, or give --root."
        )
    _warn(store)


def _key_table(title: str, *more: str) -> PlainTable:
    return table("role", "party", "epoch", "fingerprint", "key id", *more, title=title, right=("epoch",))


def _key_cells(key: TrustedKey) -> tuple[str, ...]:
    return key.role, key.party, str(key.epoch), _fingerprint(key.public), key.keyid[:16]
