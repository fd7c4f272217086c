"""What a model is made of: its shape, layers, caches, the causal and the encoder-decoder language model, and their loss."""
