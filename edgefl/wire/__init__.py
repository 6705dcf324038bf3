"""What travels over MQTT: message structs, topic names, files cut into blocks. Pure: bytes in, values out."""
