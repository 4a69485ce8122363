"""Registered RieM modules."""
