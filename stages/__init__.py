"""The stages, one module each. Each gathers facts (``look``) and returns a plan of actions (``plan``)."""
