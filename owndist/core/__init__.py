"""The protocol as pure state machines: no I/O, no clock, no threads, no user code."""
