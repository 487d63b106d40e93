"""Exports of a run, one module a format."""
