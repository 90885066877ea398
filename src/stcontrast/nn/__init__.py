"""The parts that methods are composed of: losses, towers, decoders."""
