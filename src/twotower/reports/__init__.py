"""From sweeps and runs to tables, pages, the lab book and the dashboard."""
