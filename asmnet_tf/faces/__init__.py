"""Faces of photographs and videos."""
