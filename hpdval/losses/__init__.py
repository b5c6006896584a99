"""Multi-label losses, one family per module; each is a pure function of logits, targets and class counts."""
