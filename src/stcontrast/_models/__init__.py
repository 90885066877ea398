"""Trained networks: the gene model, the image–gene network, the fine-tuned image encoder."""
