"""Import of published draft heads: layouts of Medusa, Hydra and EAGLE-3, their authors' and other engines'."""
