"""Images: where they come from, how they are corrupted and who is held out."""
