"""What the collective and the individuals agree on: the learngene, its messages, and how they travel.

A room is one of these packages. Each imports only those below it in this list, and itself; import-linter checks this
rule (``pyproject.toml``):

- ``protocol.commands``: command lines, and nothing that another room needs.
- ``protocol.node``: the node process: its configuration, start and confinement, its answers.
- ``protocol.exchange``: one side's part in an exchange: every check of what arrives in its fixed order, the ledgers,
  the gate.
- ``protocol.transport``: frames over a local socket; the courier and the relay, the two components of the Flower app.
- ``protocol.pictures``: pictures that come from outside, decoded by a confined process (``PictureReader``).
- ``protocol.confinement``: what the operating system keeps a process from.
- ``protocol.trust``: who is believed (``TrustStore``), and what may leave (``Policy``).
- ``protocol.messages``: the five kinds of payload, their envelope, sealing, the file that holds a bundle.
- ``protocol.keys``: ``SigningKey``, ``EncryptionKey``, and how they lie at rest.
- ``protocol.learngene``: the mathematics that both sides need: ``Learngene``, ``Architecture``, the network,
  ``fisher_diagonal`` (Eq. 7), ``RetainLoss`` (Eq. 8). The only room of computation; besides it, only a node's program
  and the doctor load torch.
- ``protocol.encoding``: bytes and their canonical forms: JSON, blobs, proquints.
- ``protocol.files``: saving atomically, private files and folders, a node's state, what a user names on a command line.
- ``protocol.output``, ``protocol.digest``, ``protocol.errors``, ``protocol.visible_text``: the one gate to the
  terminal; the SHA-256 that names things; every error that is raised on purpose, below ``LearngeneError``; text from
  outside made safe to show.

Nothing is imported here: the courier must not load torch, and a node is confined before it loads torch or numpy.
``docs/python-api.md`` has a whole example of what is public; everything else may change without notice.
"""
