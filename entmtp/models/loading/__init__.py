"""From a model name to weights and a tokenizer: bundled, folder, hub or GGUF."""
