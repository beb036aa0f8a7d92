"""The courier as a simulation carries it: Flower's ClientApp, whose import closes Ray to other users.

Flower imports its ClientApp before it imports and starts Ray, and has no option for Ray's address or secret. So Ray's
environment is set here, both for ``learngene run`` and for ``flwr run``.
"""

import os
import sys

from protocol.transport.courier import app
from sims.run.ray_environment import keep_ray_to_itself

__all__ = ["app"]

# A Ray worker may import this module too: it has its environment from the simulation.
if "ray" not in sys.modules:
    keep_ray_to_itself(os.environ)
