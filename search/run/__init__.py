"""Launch and resume: plan, conductor, Ray Tune, board."""
