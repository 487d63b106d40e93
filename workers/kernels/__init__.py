"""Compiled inner loops. Nothing here is imported before a model is read out on a CPU; topk.py is the plain twin."""
