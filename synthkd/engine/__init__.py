"""The run itself: from a recipe to a lab, and round by round to a student."""
