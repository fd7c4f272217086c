"""SavedModel, for TensorFlow."""
