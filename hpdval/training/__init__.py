"""Training loops: stage 1 (dual-view alignment) and stage 2 (hierarchical prompts)."""
