"""The shell around the core: processes, threads, links, and the calling of user code."""
