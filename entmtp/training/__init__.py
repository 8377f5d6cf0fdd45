"""Training of draft heads on text that the model generates itself (self-distillation)."""
