"""Joint sets, the kinematic tree and the body model."""
