"""Check a values file of the Helm chart, and convert the keys of older charts."""
