"""The networks, their loss, and their files."""
