"""The preset ``demo``: what a bare ``skyrl run`` does. See this package's plugin.toml."""
