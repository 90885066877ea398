"""One table of spots over all slides, and what is computed of it without learning: design, genes, folds."""
