"""Tensor operators of the heads: one function each, whatever runs it."""
