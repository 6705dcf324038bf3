"""Keys, certificates and signatures (the only place that imports cryptography)."""
