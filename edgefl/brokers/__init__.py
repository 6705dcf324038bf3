"""Running a broker: Mosquitto from the fleet directory, or the embedded one on loopback."""
