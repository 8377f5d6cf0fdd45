"""Kernels of a decoding step on a GPU, in Triton. Only modules that are imported when they are needed import Triton."""
