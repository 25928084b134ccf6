"""How full is a server, and what happens then? Fleets of simulated devices on real servers."""
