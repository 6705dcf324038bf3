"""Choosing the variant that a profile can hold."""
