"""The documents: that they are found, that their links lead somewhere, that their commands work."""
