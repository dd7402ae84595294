"""Files in, files out: formats, tasks, tars, and restoring them one after the other."""
