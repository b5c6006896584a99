"""Images and labels: sources, decoding, the decoded store, splits, augmentation and the embedded scenes."""
