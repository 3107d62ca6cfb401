"""Data sets as they are handed out: archives and trees."""
