"""How messages get from one process to another."""
