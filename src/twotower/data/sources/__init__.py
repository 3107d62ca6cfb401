"""Data sets as they are published: archives and folders of images."""
