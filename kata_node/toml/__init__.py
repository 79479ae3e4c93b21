"""Edit TOML text without a change to any byte outside our entry."""
