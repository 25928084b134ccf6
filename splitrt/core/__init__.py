"""What both sides agree on: pure, without clocks, sockets, torch."""
