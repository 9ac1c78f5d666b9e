"""The daemon: command line, node configuration, listeners, worker processes, publication."""
