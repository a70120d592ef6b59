"""Runs environment classes written for the package skyrl-gym, unmodified."""
