"""What all container runtimes have in common: configuration files and distributions."""
