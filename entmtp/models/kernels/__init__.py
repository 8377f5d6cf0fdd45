"""Kernels of linear and decoder layers on a CPU: packed, fused, merged and quantized."""
