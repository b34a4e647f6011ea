"""What every training shares: one state, one step, one loop, and its report."""
