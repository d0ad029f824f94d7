"""The training loop, its run folder, its devices."""
