"""Vectors of texts on disk."""
