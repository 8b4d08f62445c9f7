"""The open starter world: body, data set, training recipe."""
