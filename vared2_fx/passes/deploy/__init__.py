"""Rewrites of a static network for an engine: exact to float rounding, evaluation only."""
