"""The container runtime: its facts, and the transaction that changes its configuration."""
