"""How good a student is, and how good a set of images is."""
