"""What everything else stands on: errors, files, images as tensors, seeds, states."""
