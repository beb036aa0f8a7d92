"""Refusals: each class has a code of its own, and every text ends in what to do."""

import pytest

from protocol import errors
from protocol.errors import RefusedError

REFUSALS: tuple[type[RefusedError], ...] = tuple(RefusedError.__subclasses__())


@pytest.mark.parametrize("kind", [RefusedError, *REFUSALS])
def test_a_text_that_does_not_say_what_to_do_gets_it_from_its_class(kind: type[RefusedError]) -> None:
    text = str(kind("the thing is wrong"))
    assert text == f"the thing is wrong; {kind.advice}"
    assert "\n" not in text
    # What says it already stays as it is, so that an error wrapped in another one does not say it twice.
    assert str(kind(text)) == text
    assert str(kind(f"trust.json: {text}")) == f"trust.json: {text}"


def test_no_two_classes_have_one_code_or_one_advice() -> None:
    assert len({kind.code for kind in (RefusedError, *REFUSALS)}) == len(REFUSALS) + 1
    assert len({kind.advice for kind in (RefusedError, *REFUSALS)}) == len(REFUSALS) + 1


def test_every_refusal_is_one_of_those_that_are_named() -> None:
    defined = {value for value in vars(errors).values() if isinstance(value, type)}
    assert {value for value in defined if issubclass(value, RefusedError)} == {RefusedError, *REFUSALS}
