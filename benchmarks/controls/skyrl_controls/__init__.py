"""The controls of benchmarks/learning.py, as plugins: what a gain is compared with.

Each is one hook: `random_reward` wraps a stage, `led_start` wraps another, and
`time_limit` observes. They are registered for the benchmark's processes only.
"""
