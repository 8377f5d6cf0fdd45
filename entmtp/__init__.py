"""EntMTP: faster text from a causal language model, token for token its own."""

__version__ = "0.1.0"
