"""The command line of ``kata-node``."""
