"""Reads settings and figures that an earlier version wrote: the same facts under the names of today."""

#: Names of settings and of figures, as format 1 has them.
_NAMES = {"retain": "retain_weight", "person": "annotator"}
#: Where the word for a score stands: as a value, in a list of scores, or as a name for its figures.
_SCORE, _SCORES, _BY_SCORE = "score", "compare_scores", ("before", "after")
#: Scores, as format 1 calls them.
_SCORE_NAMES = {"paper": "msp"}


def in_todays_words(document: object) -> object:
    """A document with the words of format 1 as today's version writes it.

    Args:
        document: any parsed JSON or TOML, of any shape; what is no table stays as it is, for a model to judge.
    """
    return _renamed(document) if isinstance(document, dict) else document


def in_format_2(document: object) -> object:
    """As :func:`in_todays_words`, of a document that says its format: one of another format stays as it is."""
    if not isinstance(document, dict) or document.get("format", 1) != 1:
        return document
    return {**_renamed(document), "format": 2}


def _renamed(value: dict[str, object]) -> dict[str, object]:
    return {_NAMES.get(name, name): _value(name, inner) for name, inner in value.items()}


def _value(name: str, value: object) -> object:
    if name == _SCORE:
        return _score(value)
    if name == _SCORES and isinstance(value, list):
        return [_score(one) for one in value]
    if name in _BY_SCORE and isinstance(value, dict):
        return {_SCORE_NAMES.get(score, score): figures for score, figures in value.items()}
    if isinstance(value, dict):
        return _renamed(value)
    if isinstance(value, list):
        return [_renamed(one) if isinstance(one, dict) else one for one in value]
    return value


def _score(value: object) -> object:
    return _SCORE_NAMES.get(value, value) if isinstance(value, str) else value
