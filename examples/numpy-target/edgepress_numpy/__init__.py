"""A target that executes convolutional networks with NumPy: the smallest complete backend, and the test double."""
