"""Pure tensor functions: no modules, no state."""
