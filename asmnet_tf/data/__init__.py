"""From a face on disk to a training batch."""
