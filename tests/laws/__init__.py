"""The laws: what must always hold, each with a test of its own that names it."""
