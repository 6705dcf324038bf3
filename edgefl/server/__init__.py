"""What runs beside the fleet: rounds, block delivery, pushing versions."""
