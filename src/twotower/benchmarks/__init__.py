"""The speed of the towers and of the input, beside the usual ways to do the same."""
