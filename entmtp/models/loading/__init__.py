"""Load weights and a tokenizer from a model name: bundled, folder, hub or GGUF."""
