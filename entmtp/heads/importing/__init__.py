"""Import of published draft heads: Medusa's, Hydra's, EAGLE-3's, DFlash's and DSpark's, in several layouts."""
