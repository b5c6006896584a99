"""Average precision, protocols, groups and statistics; numpy only, knows nothing of models."""
