"""A made unknown set in three groups that anybody can tell apart."""

import numpy as np

from collective_node.annotation.unknown_set import UnknownSet

GROUPS, EACH = 3, 16


def unknown_set() -> UnknownSet:
    """48 images of 8x8: images 0..15 are reddish and look most unknown, 16..31 greenish, 32..47 bluish."""
    random = np.random.default_rng(7)
    group = np.repeat(np.arange(GROUPS), EACH)
    images = random.integers(0, 80, (GROUPS * EACH, 8, 8, 3), dtype=np.uint8)
    images[np.arange(len(images)), :, :, group] += np.uint8(150)
    features = np.eye(GROUPS, 6, dtype=np.float32)[group] + random.uniform(0, 0.2, (len(images), 6)).astype(np.float32)
    scores = 10.0 - group + random.uniform(0, 0.5, len(images))
    return UnknownSet(images, scores, features, ("apple", "maple tree"))
