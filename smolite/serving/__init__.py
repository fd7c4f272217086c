"""A run that answers people: its engines, one answer at a time, and the page to talk with it."""
