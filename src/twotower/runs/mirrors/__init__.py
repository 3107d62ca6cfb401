"""Where a run can be watched: W&B and TensorBoard."""
