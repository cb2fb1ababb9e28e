"""One folder that can be shipped as it is: artifacts, golden samples, a model card, and what it is made of."""
