"""The jsonl logger: every event of a run as a line of JSON. See `skyrl_jsonl.plugin`."""
