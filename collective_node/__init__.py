"""The collective's side: a network that grows over tasks, and the learngene that it publishes."""
