"""The paper's combination: a preset. See this package's ``plugin.toml`` and its docstring."""
