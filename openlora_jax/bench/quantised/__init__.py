"""`bench quantised`: what few bits cost a base model in accuracy, and save in bytes and time."""
