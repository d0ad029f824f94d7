"""Rendered faces with exact landmarks and pose."""
