"""What this machine has, and whether the towers, the input and a training work on it."""
