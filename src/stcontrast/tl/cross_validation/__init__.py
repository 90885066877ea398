"""Cross-validation over donors."""
