"""What the collective and the individuals agree on: the learngene, its messages, and how they travel."""
