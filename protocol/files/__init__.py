"""Files of the process: saved atomically, private, in a node's state, or named by a user."""
