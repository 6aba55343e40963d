"""Tools around the method: models, data, training, evaluation, reports and the command line."""
