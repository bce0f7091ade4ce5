"""Faults: signals, crashes and lost processes at any moment, with real processes only."""
