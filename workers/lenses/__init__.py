"""Lenses: what is done to a hidden state before it goes through the final norm and the unembedding. One file each."""
