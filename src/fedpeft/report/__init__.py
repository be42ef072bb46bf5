"""Pages, tables and figures of runs and studies."""
