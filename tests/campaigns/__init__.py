"""Long trials that are no part of the suite; each is started by itself, from tests/: python -m campaigns.nodes."""
