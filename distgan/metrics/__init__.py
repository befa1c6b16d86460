"""What a run shows of itself: distances between sets of clips, validity, event files."""
