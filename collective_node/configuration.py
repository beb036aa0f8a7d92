"""The configuration file of a collective's node."""

from collective_node.settings import CollectiveSettings
from protocol.node.configuration import NodeConfiguration


class CollectiveConfiguration(NodeConfiguration):
    """``[node]`` as for every node; ``[collective]`` decides what it learns."""

    collective: CollectiveSettings = CollectiveSettings()
