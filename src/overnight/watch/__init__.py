"""Following runs while they go: run folders in, a local page or a terminal out. Reads run folders and nothing else."""
