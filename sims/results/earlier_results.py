"""Reads ``results.json`` of earlier formats: format 1 had other words, format 2 one interval without a name."""

from protocol.encoding.earlier_words import in_format_2


def in_format_3(document: object) -> object:
    """A document of format 1 or 2 as format 3 has it; one of another format stays as it is.

    Until format 2, ``ci95`` was the interval over target tasks; that over new classes and images was not known.

    Args:
        document: any parsed JSON, of any shape; what does not fit is left for a model to judge.
    """
    document = in_format_2(document)
    if not isinstance(document, dict) or document.get("format") != 2:
        return document
    return {
        **document,
        "format": 3,
        **{name: _by_name(document[name]) for name in ("methods", "paired") if name in document},
    }


def _by_name(found: object) -> object:
    """Methods or pairs -> shots -> figures."""
    if not isinstance(found, dict):
        return found
    return {
        name: {shots: _figures(one) for shots, one in by_shots.items()} if isinstance(by_shots, dict) else by_shots
        for name, by_shots in found.items()
    }


def _figures(found: object) -> object:
    if not isinstance(found, dict):
        return found
    return {"ci95_tasks" if name == "ci95" else name: value for name, value in found.items()}
