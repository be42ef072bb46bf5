"""Where curves of a run go beside its folder."""
