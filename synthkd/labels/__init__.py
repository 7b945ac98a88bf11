"""What labels mean: names and orders of classes, folders, arrays, and the teacher's view of
them."""
