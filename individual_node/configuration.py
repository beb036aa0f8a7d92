"""The configuration file of an individual's node."""

from individual_node.settings import IndividualSettings
from protocol.node.configuration import NodeConfiguration

#: Files of an individual's folder of a world (`learngene world make`).
FILES = ("tasks.json", "support_images.npy", "support_labels.npy", "test_images.npy", "test_labels.npy")


class IndividualConfiguration(NodeConfiguration):
    """``[node]`` as for every node; ``[individual]`` decides how it adapts."""

    individual: IndividualSettings = IndividualSettings()

    def data_fault(self) -> str:
        """As :meth:`NodeConfiguration.data_fault`: the folder is none of a world, as one of own pictures is not."""
        data = self.node.data
        missing = [name for name in FILES if not (data / name).is_file()]
        if not missing:
            return ""
        return (
            f"{data} is no individual's folder of a world (it holds no {missing[0]}), so the relay's command adapt "
            "would be refused; make a world with `learngene world make`, or adapt a bundle file to own pictures with "
            "`individual-node adapt --data`"
        )
