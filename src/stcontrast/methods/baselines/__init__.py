"""Baselines: what every method has to beat."""
