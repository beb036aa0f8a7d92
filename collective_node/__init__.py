"""The collective's side: a network that grows over tasks, and the learngene that it publishes.

Public, each by its own module (nothing is imported here, so that a node can be confined before torch is loaded):

- ``collective_node.pipeline.evolve``: from images to learngenes in one call. Its steps are
  ``collective_node.evolution.Evolution`` (tasks, open-world cycles, checkpoints),
  ``collective_node.extraction.condensing.condense`` (a compact network) and
  ``collective_node.extraction.extraction.learngene_of`` (blocks and Fisher diagonal).
- ``collective_node.differential_privacy.evolution.evolve_privately``: the same with differentially private weights,
  if the settings ask for them; ``docs/differential-privacy.md`` says how.
- ``collective_node.settings.CollectiveSettings``: every number that decides what is learned.
- ``collective_node.collective_images``: the collective's folder.
- ``collective_node.network.expandable_network``: the network; ``collective_node.network.growth_steps``: how it widens,
  deepens and gets new outputs; ``collective_node.network.growth_schedule``: growth steps as a user writes them;
  ``collective_node.network.growth_of_tensors``: how momentum and Fisher diagonals follow.
- ``collective_node.open_world.stream``, ``collective_node.open_world.scores``, ``collective_node.open_world.metrics``:
  recognition of unknown images, and its metrics; ``collective_node.open_world.annotators``: who names them;
  ``collective_node.open_world.bias``: the bias between old and new classes.
- ``collective_node.ewc``: elastic weight consolidation over the collective's past tasks.
- ``collective_node.metrics.CollectiveMetrics``: the node's ``metrics.json``.
- ``collective_node.extraction.criterion``, ``collective_node.extraction.similarity``: the two criteria that choose
  layers.
- ``collective_node.program.make``: the node's program; the command ``collective-node`` starts it.

Everything else may change without notice. ``docs/python-api.md`` has a whole example.
"""
