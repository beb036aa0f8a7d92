"""Acts of a hostile process: one for each attack, with the refusal that is expected. The package needs only the
standard library: it is copied into a courier's folder and runs there by itself.
"""
