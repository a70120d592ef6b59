"""What runs inside the sandbox, on the standard library alone."""
