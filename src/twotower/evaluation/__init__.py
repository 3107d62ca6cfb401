"""Error rates, predictions, ensembles, features."""
