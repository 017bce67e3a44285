"""Two hundred kills, outages and changes of hands, and an independent recount: `make soak`."""
