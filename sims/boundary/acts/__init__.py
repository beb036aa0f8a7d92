"""What a hostile process does: an act for each attack, with what is to refuse it. Only the standard library is needed:
in a courier this package is copied and runs by itself."""
