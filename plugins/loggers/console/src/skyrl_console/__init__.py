"""The console logger: what a run prints for people. See `skyrl_console.plugin`."""
