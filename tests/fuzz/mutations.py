"""Mutations of bytes and of the JSON inside them, from a seeded source; the mutations of atheris know no JSON."""

import json
from collections.abc import Iterator
from random import Random
from typing import TypeAlias

from tests.fuzz.targets import Target, whole

Json: TypeAlias = "dict[str, Json] | list[Json] | str | int | float | None"

#: Values at which readers of JSON go wrong.
_SCALARS: tuple[Json, ...] = (
    *(None, True, 0, -1, 1, 1.0, float("nan"), float("inf")),
    *(2**31, 2**31 + 1, 2**40, 2**53 - 1, 2**53, 2**63 - 1, -(2**63), 10**400),
    *("", "0", "0" * 64, "é", "\ud800", "\x00", '"'),
)
_CONTAINERS: tuple[Json, ...] = ([], [0], [[]], {}, {"": {}})


def mutate(target: Target, data: bytes, random: Random) -> bytes:
    """One to four changes of the bytes or of the text inside them, without atheris."""
    for _ in range(random.randint(1, 4)):
        inside = target.inside if random.random() < 0.7 else whole
        data = inside(data, lambda text: change(text, random))
    return data


def change(data: bytes, random: Random) -> bytes:
    """One change, of a value where the bytes are JSON, or of bytes."""
    return random.choice((change_bytes, change_json))(data, random)


def change_bytes(data: bytes, random: Random) -> bytes:
    """A flipped bit, an inserted, removed or repeated piece, or the end cut off."""
    first, second = sorted((random.randint(0, len(data)), random.randint(0, len(data))))
    match random.randrange(5):
        case 0 if data:
            position = random.randrange(len(data))
            changed = data[position] ^ 1 << random.randrange(8)
            return data[:position] + bytes([changed]) + data[position + 1 :]
        case 1:
            return data[:first] + random.randbytes(random.randint(1, 8)) + data[first:]
        case 2:
            return data[:first] + data[min(second, first + random.randint(1, 8)) :]
        case 3:
            return data[:second] + data[first : first + 64] + data[second:]
        case _:
            return data[:second]


def change_json(data: bytes, random: Random) -> bytes:
    """One value of a JSON text changed, wherever it lies; a text that is no JSON has its bytes changed."""
    try:
        value: Json = json.loads(data)
        values = list(_values(value))
        changed = _with_one_changed(value, iter(range(len(values))), random.randrange(len(values)), values, random)
        separators = (", ", ": ") if random.random() < 0.1 else (",", ":")
        text = json.dumps(changed, sort_keys=random.random() < 0.5, separators=separators)
    except (ValueError, RecursionError):
        return change_bytes(data, random)
    return text.encode("ascii")


def _values(value: Json) -> Iterator[Json]:
    """The value and every one inside it, each before what it holds."""
    yield value
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _values(item)


def _with_one_changed(value: Json, numbers: Iterator[int], chosen: int, values: list[Json], random: Random) -> Json:
    """The value with the one changed that has the number ``chosen`` in the order of ``_values``."""
    if next(numbers) == chosen:
        # What lies inside is changed as a whole, so that its numbers are passed over.
        for _ in range(sum(1 for _ in _values(value)) - 1):
            next(numbers)
        return _changed(value, values, random)
    if isinstance(value, dict):
        return {name: _with_one_changed(item, numbers, chosen, values, random) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_one_changed(item, numbers, chosen, values, random) for item in value]
    return value


def _changed(value: Json, values: list[Json], random: Random) -> Json:
    match value, random.randrange(5):
        case _, 0:
            return random.choice(_SCALARS + _CONTAINERS)
        case _, 1:
            return random.choice(values)
        case dict(table), 2 if table:
            left_out = random.choice(list(table))
            return {name: item for name, item in table.items() if name != left_out}
        case dict(table), 3:
            return dict(random.sample(list(table.items()), len(table)))
        case dict(table), _:
            return table | {random.choice(("a", "pad", *table)): random.choice(values)}
        case list(items), 2:
            return items[:-1]
        case list(items), _:
            return items * random.choice((2, 4, 100))
        case int(number), _:
            return number + random.choice((-1, 1))
        case str(text), _:
            return change_bytes(text.encode("utf-8", "replace"), random).decode("latin-1")
        case _:
            return random.choice(values)
