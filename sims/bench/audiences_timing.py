"""Times the grants of one release to many individuals."""

import hashlib
import tempfile
from pathlib import Path

from protocol.digest import digest_of
from protocol.exchange import content_keys, verification
from protocol.exchange.collective_ledger import CollectiveLedger
from protocol.keys.encryption_key import EncryptionKey
from protocol.keys.signing_key import SigningKey
from protocol.messages import sealing
from protocol.messages.builders import make_grant
from protocol.node.events import Observer
from sims.bench.made_bundle import (
    COLLECTIVE,
    CONTENT_KEY,
    NOW,
    RUN,
    Bundle,
    request_of,
    trust_with,
)
from sims.bench.measurements import (
    Audiences,
    spread,
)
from sims.bench.rows import Clock


def measure_audiences(
    bundle: Bundle, count: int, folder: Path, clock: Clock, observe: Observer, step: int = 50
) -> Audiences:
    """Grant the one release of a bundle to ``count`` individuals, from a ledger on the disk of ``folder``."""
    individuals = [SigningKey.from_seed(hashlib.sha256(b"audience %d" % number).digest()) for number in range(count)]
    trust = trust_with(individuals)
    parts: dict[str, list[float]] = {"verify": [], "seal_and_sign": [], "store": [], "seal": []}
    sizes: set[int] = set()
    request = b""
    with tempfile.TemporaryDirectory(prefix="learngene-bench-", dir=folder) as temporary:
        ledger = CollectiveLedger(Path(temporary))
        closed = content_keys.close(COLLECTIVE, CONTENT_KEY, digest_of(bundle.release))
        release = ledger.add_release(bundle.release, closed, bundle.ciphertext)
        for number, individual in enumerate(individuals):
            if number % step == 0:
                observe(number, count, "granting")
            request = request_of(individual, EncryptionKey.generate(bundle.kem))
            start = clock()
            verified = verification.verify_request(
                request,
                trust=trust,
                run_id=RUN,
                audience=COLLECTIVE.keyid,
                known=lambda keyid, nonce: ledger.request_with_nonce(RUN, keyid, nonce),
                now=NOW,
            )
            read = clock()
            answered = (verified.payload, verified.digest, release.payload, release.digest)
            grant = make_grant(*answered, key=COLLECTIVE, now=NOW, content_key=CONTENT_KEY)
            made = clock()
            ledger.add_grant(verified, release, grant)
            stored = clock()
            # Seal once more by itself, because the endpoint makes only whole grants.
            sealing.seal_content_key(CONTENT_KEY, verified.payload, b"")
            sealed = clock()
            steps = (read - start, made - read, stored - made, sealed - stored)
            for values, value in zip(parts.values(), steps, strict=True):
                values.append(value)
            sizes.add(len(grant))
        ledger.close()
    observe(count, count, "granting")
    each = [sum(steps) for steps in zip(parts["verify"], parts["seal_and_sign"], parts["store"], strict=True)]
    return Audiences(
        audiences=count,
        verify=spread(parts["verify"]),
        seal_and_sign=spread(parts["seal_and_sign"]),
        seal=spread(parts["seal"]),
        store=spread(parts["store"]),
        each=tuple(each),
        request_bytes=len(request),
        grant_bytes=max(sizes),
        release_bytes=len(bundle.release),
        blob_bytes=len(bundle.ciphertext),
    )
