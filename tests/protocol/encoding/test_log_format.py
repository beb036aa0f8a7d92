"""A log's records: none can be forged by what another tells of."""

import logging
from io import StringIO

from protocol.encoding.log_format import OneLineFormatter

FORGED = "a name\n2026-11-20 10:00:02,001 ERROR adapt failed: forged\u2028x\x1b[2J"


def written(formatter: logging.Formatter) -> list[str]:
    """The lines of a message, and of an exception with a cause and a group, whose texts are hostile."""
    stream = StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter)
    logger = logging.Logger("of its own")
    logger.addHandler(handler)
    logger.error("refused %s", FORGED)
    try:
        try:
            raise ExceptionGroup(FORGED, [ValueError(FORGED)])
        except ExceptionGroup as error:
            raise KeyError(FORGED) from error
    except KeyError:
        logger.exception("failed %s", FORGED)
    return stream.getvalue().split("\n")


def test_a_record_is_one_line_and_a_traceback_forges_none() -> None:
    control = written(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    assert sum("ERROR adapt failed: forged" in line and line.startswith("2026-11-20") for line in control) >= 2
    lines = written(OneLineFormatter())
    assert not any(line.startswith("2026-11-20 10:00:02,001") for line in lines)
    assert len([line for line in lines if " ERROR refused a name\\n2026" in line]) == 1
    assert any(line.startswith("Traceback (most recent call last):") for line in lines)
    assert any(line.startswith("KeyError: ") for line in lines)
    assert not any(set("\x1b\u2028") & set(line) for line in lines)
