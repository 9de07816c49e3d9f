"""The towers, one architecture a file, and structural reparameterization."""
