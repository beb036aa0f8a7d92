"""The courier as a simulation carries it: Flower's ClientApp, by whose import Ray is told to keep to itself.

Flower imports its ClientApp before it imports and starts Ray, and lets nobody hand Ray an address or a secret. So it is
here that Ray's environment is set, whoever started the simulation: ``learngene run`` or ``flwr run``.
"""

import os
import sys

from protocol.transport.courier import app
from sims.run.ray_environment import keep_ray_to_itself

__all__ = ["app"]

# A Ray worker may import this module too: it has its environment from the simulation.
if "ray" not in sys.modules:
    keep_ray_to_itself(os.environ)
