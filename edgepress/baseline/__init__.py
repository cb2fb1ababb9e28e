"""The accepted release: a reviewed file in the repository, and what later runs are compared with it by."""
