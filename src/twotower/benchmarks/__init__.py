"""How fast the towers and the input are, beside what others would use."""
