"""Daemons that tests run beside themselves: a message broker and an endpoint of Globus Compute."""
