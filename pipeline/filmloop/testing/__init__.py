"""Contract suites and stand-ins for tests: shipped for adapter authors, never imported by the rest."""
