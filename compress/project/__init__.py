"""The user's side, inside a child process: model factory, checkpoint, datasets, and the traced program."""
