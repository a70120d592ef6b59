"""The kernel's own plugins: what a run uses where nothing else was asked for.

They are registered through entry points like anyone's and use no private path.
"""
