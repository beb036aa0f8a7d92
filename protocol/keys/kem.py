"""The two ways to encapsulate a content key, and the sizes of their public keys."""

from typing import Literal

#: The key encapsulation of HPKE: X25519, or its hybrid with ML-KEM-768 (X-Wing), which resists a later quantum computer
#: with a recorded exchange.
Kem = Literal["x25519", "mlkem768-x25519"]

#: Bytes of a public key of each kind: 32 of X25519, before them 1,184 of ML-KEM-768 (FIPS 203).
PUBLIC_BYTES: dict[Kem, int] = {"x25519": 32, "mlkem768-x25519": 1184 + 32}
