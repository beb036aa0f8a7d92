"""The mathematics of both parties: architecture, network, learngene, Fisher information, Eq. 9."""
