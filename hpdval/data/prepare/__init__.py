"""The published data sets, made ready: what they consist of, downloads, extraction, and the check of the result."""
