"""CPython's own executor tests, run on OwnershipExecutor."""
