"""Figures 1 to 4 of the paper, and others of the same runs."""
