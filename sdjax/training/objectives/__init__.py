"""What is learned: objectives, and the runs that configure them."""
