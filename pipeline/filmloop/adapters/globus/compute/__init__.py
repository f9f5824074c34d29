"""Globus Compute behind `ports.launcher`: a function that trains over there, and where it stands."""
