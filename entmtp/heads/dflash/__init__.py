"""DFlash and DSpark draft heads: all depths in one pass over a block of mask tokens (arXiv 2602.06036, 2607.05147)."""

from entmtp.heads.dflash.heads import DFlashHeads

__all__ = ["DFlashHeads"]
