"""Kata's configuration: the drop-ins of each handler, and how Kata merges them."""
