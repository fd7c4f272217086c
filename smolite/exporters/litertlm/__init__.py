"""LiteRT-LM bundles, and the page that runs them."""
