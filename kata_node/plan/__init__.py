"""What every concern speaks in: actions, plans, the receipt, and reports."""
