"""EAGLE-3 draft heads: decoder layers on the model's states at several depths (arXiv 2503.01840)."""

from entmtp.heads.eagle3.heads import Eagle3Heads

__all__ = ["Eagle3Heads"]
