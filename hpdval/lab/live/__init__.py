"""Widgets in JupyterLab: views of what lies on disk, each with a static form for executed notebooks."""
