"""The run directory and what else holds weights: writing, reading, folders of the hub, fewer bits."""
