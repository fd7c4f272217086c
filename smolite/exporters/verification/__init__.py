"""Whether a file says what the model says."""
