"""The container runtime of the node: its facts, and the transaction that changes its configuration."""
