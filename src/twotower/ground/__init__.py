"""The ground of every room: files, processes, random streams, progress, words. It imports no other room."""
