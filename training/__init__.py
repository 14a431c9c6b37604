"""Training: data, losses, one loop, stage classes (``python -m training <stage>``)."""
