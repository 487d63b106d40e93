"""Frames, streams, segments and the store: what happens to results after the model. No torch, no ray."""
