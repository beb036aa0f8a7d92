"""Confinement of a process by the operating system: files, system calls, networks, privileges."""
