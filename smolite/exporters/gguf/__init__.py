"""GGUF, for llama.cpp."""
