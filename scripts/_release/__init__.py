"""The parts of scripts/release: what a release is made of, each in a module of its own."""
