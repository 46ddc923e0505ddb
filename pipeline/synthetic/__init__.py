"""A synthetic world: clips of moving, changing shapes, and questions whose answers are known."""
