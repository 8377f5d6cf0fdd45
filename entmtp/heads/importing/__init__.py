"""Import of published draft heads: Medusa, Hydra, TGI and vLLM layouts."""
