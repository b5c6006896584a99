"""CLIP with projected patch tokens, prompts, and dual-view scores."""
