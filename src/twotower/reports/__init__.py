"""Reports on sweeps and runs: tables, pages, the lab book and the dashboard."""
