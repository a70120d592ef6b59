"""Questions answered with two tools, a search engine and Python in the sandbox."""
