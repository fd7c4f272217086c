"""Recipes that train by `model.fit`: options, losses, optimizers, callbacks, resuming."""
