"""The project's figures: style.py the look of all, returns.py results, inside.py histories and contexts, frames.py films."""
