"""Models of other runtimes and of the authors' release."""
