"""ImageNet100 at 84x84: the classes of mini-ImageNet, 64 base, 16 open-world and 20 novel."""
