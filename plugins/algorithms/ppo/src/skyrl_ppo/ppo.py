"""The preset ``ppo``: gae, beside the kernel's default loss. See this package's plugin.toml."""
