"""`layout`: boxes for the elements of a web-page section, drawn by a small diffusion transformer."""
