"""The history file. format.py holds its names and types, markers.py says where regions are, and writer.py writes it;
origin.py, reader.py and returns.py read it; checks.py looks for what is wrong with it."""
