"""Tree decoding: the step, the continuous batch, sampling, acceptance and text."""
