"""One module per stage, all of one shape: look at the host, plan, hand back actions."""
