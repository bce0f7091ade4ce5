"""Unit tests of the pure core: no process, no clock, a few milliseconds each."""
