"""THE WIRE: how halves cross between the towers, over which transport, between which processes."""
