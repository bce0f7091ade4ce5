"""How messages, values and functions become bytes: no processes, threads or sockets in here."""
