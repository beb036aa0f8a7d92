"""What both parties compute with: architecture, network, learngene, Fisher information, Eq. 9."""
