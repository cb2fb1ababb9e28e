"""What each command does, once its line is parsed: one module per subject, imported when it is asked for."""
