"""What a prediction is worth: truth, metrics, reports."""
