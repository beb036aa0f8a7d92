"""Pictures and archives from outside, behind one gate."""
