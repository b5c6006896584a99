"""Widgets for JupyterLab: views of what models do, each with a static form for executed notebooks."""
