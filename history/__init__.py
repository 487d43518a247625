"""The history file: format.py its names, markers.py its regions, writer.py; origin.py, reader.py, returns.py and
curve.py read it, and checks.py looks for what is wrong with it."""
