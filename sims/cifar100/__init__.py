"""The main job: CIFAR-100, 64 base, 16 open-world and 20 novel classes."""
