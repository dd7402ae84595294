"""Restoring an image with a diffusion prior: settings, schedulers, and one session for every face of the pipeline."""
