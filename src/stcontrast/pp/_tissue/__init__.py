"""Tissue on a slide, and spots laid on it."""
