"""Models for filmloop: networks, the detector's forward model, classical baselines. Never imports `filmloop`."""
