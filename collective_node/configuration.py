"""The configuration file of a collective's node."""

from collective_node.settings import CollectiveSettings
from protocol.errors import InputError
from protocol.node.configuration import NodeConfiguration
from protocol.trust.policy_file import load_policy


class CollectiveConfiguration(NodeConfiguration):
    """``[node]`` as for every node; ``[collective]`` decides what it learns."""

    collective: CollectiveSettings = CollectiveSettings()

    def data_fault(self) -> str:
        """As :meth:`NodeConfiguration.data_fault`: the folder is none of a world, or has too few images."""
        # Imported when it is called: a node's start confines its process before numpy is loaded.
        from collective_node.collective_images import UNREADABLE, read_manifest
        from collective_node.enough_images import check_classes, check_fisher_images

        data = self.node.data
        try:
            manifest = read_manifest(data)
            classes, images = len(manifest["classes"]), int(manifest["counts"]["train"])  # type: ignore[arg-type, index]
        except UNREADABLE:
            return (
                f"{data} is no collective's folder of a world, so the relay's command evolve would be refused; make a "
                "world with `learngene world make`, and set node.data to its folder `collective`"
            )
        try:
            policy = load_policy(self.node.policy, "collective")
            check_classes(self.collective, classes)
            # At most so many are taught.
            check_fisher_images(self.collective, images, policy.minimum_fisher_samples)
        except InputError as error:
            return f"the relay's command evolve would be refused: {error}"
        return ""
