"""Kernels of linear and decoder layers on a CPU: packed, fused and merged."""
