"""The controls of the learning benchmarks, as plugins: what a gain is compared with.

Each is one hook: `random_reward`, `led_start`, `flipped_advantages`,
`shuffled_advantages` and `train_on_replies` wrap a stage, and `time_limit`
observes. They are registered for the benchmarks' processes only.
"""
