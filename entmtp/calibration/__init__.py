"""Calibration, from prompts to a tree bank: rank traces, optimal trees, predictors, thresholds and replay."""
