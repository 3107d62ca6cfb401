"""The run directory: written while a run trains, read back afterwards."""
