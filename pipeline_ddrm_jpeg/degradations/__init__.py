"""What happened to an image: the operators, and what a measurement says of the image behind it."""
