"""The settings of one node, from the values file, the options and the table of shims."""
