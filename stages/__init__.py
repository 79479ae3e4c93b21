"""The stages, one module each: ``gather_facts`` gathers facts, and ``plan`` returns a plan of actions."""
