"""How the assignments are judged: what a solution does in both towers, beside what it should do."""
