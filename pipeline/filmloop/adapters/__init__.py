"""Vendor SDKs and local stand-ins behind the ports: nothing outside this package knows them."""
