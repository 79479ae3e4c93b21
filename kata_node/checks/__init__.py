"""What host-check asks of a node, and the finding for each question."""
