"""Host-check: the facts of a node, and the checks that turn them into findings."""
