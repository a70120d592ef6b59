"""The preset ``demo_multi_turn``: the demo over two turns. See this package's plugin.toml."""
