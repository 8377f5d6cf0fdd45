"""Models in GGUF files: metadata, tokenizer and weights, read where they lie."""
