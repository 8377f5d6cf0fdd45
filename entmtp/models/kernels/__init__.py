"""How linear and decoder layers run on a CPU: packed, fused, merged and quantized."""
