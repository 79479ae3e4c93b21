"""Edit TOML text and keep every byte that is not ours."""
