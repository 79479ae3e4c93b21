"""What is wanted: the values file, flags, and the table of shims."""
