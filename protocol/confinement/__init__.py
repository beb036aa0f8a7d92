"""What the operating system keeps a process from: files, system calls, networks, privileges."""
