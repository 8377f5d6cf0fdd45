"""Draft heads: Medusa, Hydra and Hydra++, trained here or published."""
