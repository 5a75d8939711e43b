"""Fine-tuning: the same loop for the command line and, later, for jobs over HTTP."""
