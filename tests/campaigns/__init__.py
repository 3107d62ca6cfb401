"""Campaigns: seeded attacks on files, processes and settings, longer than a test; each starts by itself."""
