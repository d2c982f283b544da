"""What is in the weights of a model: numbers of every tensor, and pictures."""
