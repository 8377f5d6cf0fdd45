"""Rows that a run writes, and the store that they are in."""
