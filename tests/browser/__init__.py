"""Notebooks in JupyterLab in a real browser: what a reader of the notebooks sees."""
