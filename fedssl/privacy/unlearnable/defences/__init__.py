"""What a learner can do against protected images; it keeps labels and shapes."""
