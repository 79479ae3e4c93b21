"""The parts that all container runtimes share: file changes, and the table of distributions."""
