"""A notebook over a grid of settings and seeds, each run in a process of its own, scheduled by dask.distributed."""
