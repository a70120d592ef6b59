"""How trajectories are made: env calls under deadlines, requests in rounds, one bad call costs one trajectory."""
