"""Multiplication problems with a boxed answer, made from a seed."""
