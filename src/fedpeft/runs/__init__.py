"""Run folders, checkpoints and summaries."""
