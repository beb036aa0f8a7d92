"""What the collective and the individuals agree on: the learngene, its messages, and how they travel.

A folder imports only those above it in this list, and itself (import-linter holds it to that, ``pyproject.toml``):

- ``errors``, ``digest``, ``visible_text``, ``output``: every error that is raised on purpose, below ``LearngeneError``;
  the SHA-256 that names things; text from outside made safe to show, and the one gate to the terminal.
- ``files``: saving atomically, private files and folders, a node's state, what a user names on a command line.
- ``encoding``: bytes and their canonical forms: JSON, blobs, proquints.
- ``learngene``: the mathematics that both sides need: ``Learngene``, ``Architecture``, the network, ``fisher_diagonal``
  (Eq. 7), ``RetainLoss`` (Eq. 8). The only folder that loads torch.
- ``keys``: ``SigningKey``, ``EncryptionKey``, and how they lie at rest.
- ``messages``: the five kinds of payload, their envelope, sealing, the file that holds a bundle.
- ``trust``: who is believed (``TrustStore``), and what may leave (``Policy``).
- ``confinement``: what the operating system keeps a process from.
- ``pictures``: pictures that come from outside, decoded by a confined process (``PictureReader``).
- ``transport``: frames over a local socket; the courier and the relay, the two components of the Flower app.
- ``exchange``: one side's part in an exchange: every check of what arrives in its fixed order, ledgers, the gate.
- ``node``: the node process: its configuration, start and confinement, its answers.
- ``commands``: command lines, and nothing that another folder needs.

Nothing is imported here: the courier must not load torch, and a node is confined before it loads torch or numpy.
``docs/python-api.md`` has a whole example of what is public; everything else may change without notice.
"""
