"""The service at the instrument: frames in, results out, every frame staged or counted, weights swapped while it runs.

service.py reads top to bottom; the other modules are its stages. Only `runtimes` imports torch, and only where nothing else serves:
`filmloop status` and the cycle use status, control and spawn alone.
"""
