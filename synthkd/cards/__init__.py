"""What a student or a data set tells of itself: README.md files that Hugging Face reads too."""
