"""One complete TOML file per site, validated without touching network or disk."""
