"""Pooling operations: the definition, its implementations, and the public functions that choose between them."""
