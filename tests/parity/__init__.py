"""The stdlib's executor behaviour: one body, run on its ProcessPoolExecutor and on ours."""
