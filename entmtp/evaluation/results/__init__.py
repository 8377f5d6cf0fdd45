"""Rows that a run writes, where they lie, and their provenance."""
