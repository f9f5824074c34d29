"""Measurements of filmloop beside named peers, each in the same run: functions, which `filmloop bench` reports."""
