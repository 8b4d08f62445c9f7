"""Motion clips: procedural generator, AMASS reader, augmentation."""
