"""One suite for all adapters of a port: subclass it, provide the fixture, and every promise of the port is tested."""
