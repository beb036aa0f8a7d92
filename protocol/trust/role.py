"""The two roles of an exchange: which party sends learngenes, and which one inherits them."""

from collections.abc import Mapping
from typing import Literal

Role = Literal["collective", "individual"]
#: The role on the other side of an exchange; below, each role with its article, for messages.
PARTNER: Mapping[Role, Role] = {"collective": "individual", "individual": "collective"}
A_PARTY: Mapping[Role, str] = {"collective": "a collective", "individual": "an individual"}
