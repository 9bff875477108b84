"""Scale: meshes, costs and memory."""
