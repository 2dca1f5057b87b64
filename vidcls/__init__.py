"""vidcls: train, evaluate and run classifiers of short videos."""
