"""MLflow: the registry's client, and a server of our own on this machine."""
