"""Frame sources: the CookieBox simulator, and replay of recorded frames."""
