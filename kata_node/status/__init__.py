"""What is on this node now: every installation, what the runtime serves, and the verdict. Changes nothing."""
