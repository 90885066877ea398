"""Crops of the H&E, read from an image pyramid."""
