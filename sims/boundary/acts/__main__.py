"""``python -m acts ASKED ANSWERED``, between two pipes: a line of JSON with ``name`` and ``aims`` in, a line with the
outcome out."""

import base64
import json
import sys

from .all_acts import perform


def main(asked: str, answered: str) -> None:
    """Answer until the questions end."""
    with open(asked) as questions, open(answered, "w") as answers:
        for line in questions:
            question = json.loads(line)
            found = perform(question["name"], question["aims"])
            answer = found._asdict() | {"evidence": base64.b64encode(found.evidence).decode()}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
