"""Losses as pure functions: what a student minimises, and what synthetic images are made by."""
