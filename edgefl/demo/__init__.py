"""Everything on one machine: a broker, a server and a fleet of device processes, with real certificates, files and sockets."""
