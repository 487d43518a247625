"""The history file. format.py holds its names and types, markers.py says where regions are. writer.py and join.py write it;
origin.py, reader.py and returns.py read it; checks.py looks for what is wrong with it. paths.py puts training histories together from its
rollouts, news.py and pace.py tell from the file where regions may end and how fast a policy changes."""
