"""What leaves the model, its arguments and the thread as they were, whatever goes wrong."""
