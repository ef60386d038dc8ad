"""What a training run looks like while it goes on."""
