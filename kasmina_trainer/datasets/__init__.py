"""Real data and its corruptions; numpy only, so that a camera process stays light."""
