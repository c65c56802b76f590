"""Where a recipe step runs: local process, Ray job, Slurm job. One interface, one conformance suite."""
