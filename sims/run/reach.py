"""Who can reach a run's sockets: one of three words, and a sentence for each."""

from collections.abc import Mapping
from typing import Literal

from sims.run import same_user

#: ``run``: only its own processes, in a network of their own; ``user``: every process of the same user, on the
#: machine's loopback; ``machine``: every user of the machine, on the loopback.
Reach = Literal["run", "user", "machine"]

SENTENCES: Mapping[Reach, str] = {
    "run": "Flower and Ray worked in a network of their own: no other process of this machine, and nobody outside it, "
    "could reach what they listened on.",
    "user": "Flower and Ray listened on this machine's loopback, because the system gave the run no network of its "
    "own: other users of this machine could connect and were refused, by Flower's SuperLink for who they are and by "
    "Ray for want of the run's token.",
    "machine": "Flower's SuperLink listened on this machine's loopback and asked nobody who they are: every user of "
    "this machine could have had an app of theirs executed with the rights of this one, while the run went on and for "
    "as long as the SuperLink was there. `learngene run` on Linux keeps them out.",
}


def reach_of_run(refused: str) -> Reach:
    """The reach of a run of `learngene run`.

    Args:
        refused: why it could not get a network of its own; empty if it has one.
    """
    if not refused:
        return "run"
    return "user" if same_user.offered() else "machine"
