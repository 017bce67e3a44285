"""What each kind of learner reaches on real data, learned in one pass by the pipeline's own learner, fed from RAM."""
