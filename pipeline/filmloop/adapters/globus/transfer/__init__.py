"""Globus Transfer behind `ports.mover`: documents, tasks, patience, audits, and files put in their places."""
