"""The connection to the broker (the only place that imports paho)."""
