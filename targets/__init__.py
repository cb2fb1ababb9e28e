"""Nouns: devices, tensors, artifacts, and what each runtime can execute. Imports nothing else of edgepress."""
