"""Types that all stages share: actions, plans, the receipt, reports, and the stage context."""
