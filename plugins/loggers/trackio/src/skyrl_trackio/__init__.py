"""The trackio logger: a run in Trackio. See `skyrl_trackio.plugin`."""
