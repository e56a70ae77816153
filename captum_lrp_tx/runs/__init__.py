"""What all runs over data share: the folder of results, what they are of, and where inputs go."""
