"""The configuration: schema.py lists every key once, loading.py reads the YAML files in env/, algorithm/ and model/."""
