"""Ways in which the program of a node that was taken over could hide its party's data in an answer."""
