"""Compiled inner loops; none is imported before it is used, and topk.py is the plain twin of all."""
