"""An image that was a JPEG: what its pixels still say, without torch."""
