"""Text and token ids: normalization, SentencePiece and byte-level tokenizers."""
