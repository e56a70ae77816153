"""What no rule covers, what no rule can reach, and which module made a NaN."""
