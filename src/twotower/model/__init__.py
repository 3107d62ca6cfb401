"""Figure 2: its table, the tower that is built from it, its layers, its initial weights."""
