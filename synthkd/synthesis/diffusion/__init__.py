"""Diffusion generators: the arithmetic, sampling, the generator, and folders of diffusers."""
