"""The Active Shape Model."""
