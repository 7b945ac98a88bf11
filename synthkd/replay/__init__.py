"""What the student sees again: the replay memory of images, and the generative one."""
