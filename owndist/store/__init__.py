"""Values in shared memory: written once by one process, mapped by any other of the same host."""
