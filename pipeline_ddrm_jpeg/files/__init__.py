"""Files in, files out: formats, tasks, archives, and restoring them one after the other."""
