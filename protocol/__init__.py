"""What the collective and the individuals agree on: the learngene, its messages, and how they travel.

Public, each by its own module. Nothing is imported here: the courier must not load torch, and a node is confined before
it loads torch or numpy.

- ``protocol.desks``: ``CollectiveDesk`` and ``IndividualDesk``, the two sides of an exchange; the messages' makers.
- ``protocol.verification``: every check of what arrives, in its fixed order.
- ``protocol.learngene.Learngene``, ``protocol.architecture.Architecture``: what is inherited, and its description.
- ``protocol.network``, ``protocol.fisher.fisher_diagonal``, ``protocol.retain_loss.RetainLoss`` (Eq. 8),
  ``protocol.images``: the mathematics that both sides need.
- ``protocol.keys.SigningKey``, ``protocol.trust.TrustStore``, ``protocol.policy.Policy``: who is believed, what may
  leave.
- ``protocol.ledger``, ``protocol.audit``: what a party keeps of what it did.
- ``protocol.node``, ``protocol.launcher``, ``protocol.node_configuration``: the node process and its file.
- ``protocol.courier.app``, ``protocol.relay.app``: the two components of the Flower app; ``protocol.relay.run_round``.
- ``protocol.pictures.reader.PictureReader``: pictures that come from outside, decoded by a confined process.
- ``protocol.errors``: every error that is raised on purpose, below ``LearngeneError``.

Everything else may change without notice. ``docs/python-api.md`` has a whole example.
"""
