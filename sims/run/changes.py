"""Changes to single training numbers, as text: ``collective.NAME=VALUE individual.NAME=VALUE ...``."""

import difflib
import math
import shlex
from collections.abc import Mapping, Sequence
from types import NoneType
from typing import TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from collective_node.settings import CollectiveSettings
from individual_node.settings import IndividualSettings
from protocol.errors import InputError, fault_line

_Party = TypeVar("_Party", bound=BaseModel)


def nearest(target: str, known: Sequence[str]) -> str:
    """The known setting that is most similar to a wrong one, first among those of its party; empty if none is near."""
    party, _, name = target.rpartition(".")
    for candidates in ([one for one in known if one.startswith(f"{party}.")], known):
        names = {one.rpartition(".")[2]: one for one in reversed(candidates)}
        if found := difflib.get_close_matches(name, names, n=1, cutoff=0.7):
            return names[found[0]]
    return ""


def join_changes(changes: Sequence[str]) -> str:
    """Changes ``PARTY.NAME=VALUE`` as the text of ``set``; one that holds a space is quoted as a shell quotes."""
    return shlex.join(changes)


def parse_changes(text: str) -> dict[str, dict[str, str]]:
    """``collective.NAME=VALUE individual.NAME=VALUE ...`` by party and name; a value with a space stands in quotes."""
    models: Mapping[str, type[BaseModel]] = {"collective": CollectiveSettings, "individual": IndividualSettings}
    found: dict[str, dict[str, str]] = {party: {} for party in models}
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise InputError(f"set: {text!r} cannot be read: {error}") from None
    for word in words:
        target, equals, value = word.partition("=")
        party, dot, name = target.partition(".")
        known = [f"{party}.{name}" for party, model in models.items() for name in model.model_fields]
        if equals and target not in known and (meant := nearest(target, known)):
            raise InputError(f"set: unknown setting {target!r}; did you mean {meant}? --dry-run lists them all")
        if not (equals and dot and party in models):
            raise InputError(f"set: {word!r} is not of the form collective.NAME=VALUE or individual.NAME=VALUE")
        if name not in models[party].model_fields:
            raise InputError(f"set: unknown setting {target!r}; --dry-run lists those of the {party}")
        if name in found[party]:
            raise InputError(f"set: {target} is given twice")
        found[party][name] = value
    return found


def changed(party: str, settings: _Party, changes: Mapping[str, str]) -> _Party:
    """A party's settings with some of them replaced, checked as a whole."""
    values: dict[str, object] = settings.model_dump()
    for name, text in changes.items():
        values[name] = _value(text, type(settings).model_fields[name].annotation)
    try:
        after = type(settings).model_validate(values)
    except ValidationError as error:
        raise InputError(fault_line(error, inside=party)) from None
    for name, value in after:
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{party}.{name} must be a finite number, not {value}")
    return after


def _value(text: str, kind: object) -> object:
    """The value that pydantic gets for a text: a list if the setting is one (empty for an empty text); None if it may
    be; else the text.
    """
    kinds = (kind, *get_args(kind))
    if text == "none" and NoneType in kinds:
        return None
    if any(get_origin(one) is tuple for one in kinds):
        return [part.strip() for part in text.split(",")] if text.strip() else []
    return text


def as_text(value: object) -> str:
    """A training number as ``set`` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
