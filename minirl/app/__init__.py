"""What a person touches: the command line, the run directory, evaluation and plots. Nothing below imports from here."""
