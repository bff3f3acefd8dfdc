"""The adapters where they meet the system: sockets, loops, threads, forks, signals."""
