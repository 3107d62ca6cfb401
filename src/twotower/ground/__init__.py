"""What every room stands on: files, processes, random streams, progress, words. Imports nothing of twotower."""
