"""What runs beside intake and the runs themselves: dispatcher, rescuer, relay."""
