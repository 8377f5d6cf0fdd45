"""Draft heads: Medusa, Hydra, EAGLE-3 and others, trained here or published."""
