"""Fitting lenses to a model: least squares, then the divergence itself. One file a thing; knows no Ray."""
