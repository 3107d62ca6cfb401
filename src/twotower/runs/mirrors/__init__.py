"""Mirrors of a run, in which people watch it: W&B and TensorBoard."""
