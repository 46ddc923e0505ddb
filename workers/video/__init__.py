"""From a file to frames with their times: containers, clocks, damage, decoders in a process of their own."""
