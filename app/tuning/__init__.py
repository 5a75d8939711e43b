"""Fine-tuning: the same loop for the command line and for jobs over HTTP."""
