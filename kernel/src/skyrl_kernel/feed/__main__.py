"""``python -m skyrl_kernel.feed``: see `skyrl_kernel.feed.process`."""

from skyrl_kernel.feed.process import main

main()
