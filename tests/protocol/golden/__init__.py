"""What format version 1 looks like: files that must verify for ever."""
