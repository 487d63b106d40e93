"""Interventions: taps that are changed in the model while it runs (docs/INTERVENTIONS.md)."""
