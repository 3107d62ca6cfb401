"""From a configuration to trained towers: processes, loop, schedule, update, sweeps."""
