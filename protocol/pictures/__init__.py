"""Pictures and archives from outside, behind one gate; above ``confinement`` and ``files``, below ``node``."""
