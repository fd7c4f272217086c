"""Folders of other Keras packages and formats."""
