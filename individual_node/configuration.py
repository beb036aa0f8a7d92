"""The configuration file of an individual's node."""

from individual_node.settings import IndividualSettings
from protocol.node.configuration import NodeConfiguration


class IndividualConfiguration(NodeConfiguration):
    """``[node]`` as for every node; ``[individual]`` decides how it adapts."""

    individual: IndividualSettings = IndividualSettings()
