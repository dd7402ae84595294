"""The JPEG file: what it says, without torch."""
