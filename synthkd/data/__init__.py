"""Image sets: where those that exist are read from, and the store of synthetic ones."""
