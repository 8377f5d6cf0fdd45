"""Constrained decoding: grammars over the tokens of a model, by llguidance."""
