"""Numba kernels for CUDA devices."""
