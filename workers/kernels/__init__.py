"""Kernels for accelerators. Each needs a compiler that raylens does not install; none is imported unless it is used."""
