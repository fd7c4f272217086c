"""What a model is worth on text that it has not seen."""
