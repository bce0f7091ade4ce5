"""A simulator: one driver and its workers, all of them `Machine`, in one process."""
