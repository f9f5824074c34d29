"""The command line: each command parses, builds, calls one function and prints what it made."""
